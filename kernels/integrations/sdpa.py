"""Offer the attention kernels to every model that calls `F.scaled_dot_product_attention`.

PyTorch lets a library put its own kernels behind SDPA's flash backend. After

    from kernels.integrations.sdpa import register_flash_attention
    register_flash_attention()
    torch.nn.attention.activate_flash_attention_impl("triton")

a causal SDPA call that takes the flash backend runs `kernels.attention`, in any model and without a
change to it. `torch.nn.attention.sdpa_kernel(SDPBackend.FLASH_ATTENTION)` makes calls take that
backend (on Hopper, PyTorch prefers cuDNN); `restore_flash_attention_impl` undoes the activation. In
Triton's interpreter the flash backend of the CPU is replaced in the same way, for checking.

SDPA's layout is (B, H, T, D): its tensors are read in place through their strides.
"""

import torch
from torch import Tensor
from torch.nn import attention as torch_attention

from kernels._attention.operators import attention_bwd, attention_fwd
from kernels._common.launch import INTERPRETED
from kernels.attention import LN2, check_attention, draw_seed


def register_flash_attention(name: str = "triton") -> None:
    """Register the kernels with PyTorch as a flash attention implementation.

    Nothing changes before `torch.nn.attention.activate_flash_attention_impl(name)`. While it is
    active, calls of the flash backend that are not causal self-attention raise ValueError.

    Args:
        name: the name to activate it by.

    Source:
        `torch.nn.attention.register_flash_attention_impl`, PyTorch 2.11 and later.
    """
    torch_attention.register_flash_attention_impl(name, register_fn=_Overrides)


class _Overrides:
    """Replaces the aten operators of SDPA's flash backend for as long as this object lives."""

    def __init__(self) -> None:
        library = torch.library.Library("aten", "IMPL")
        op = "_scaled_dot_product_flash_attention"
        library.impl(op, _sdpa_cuda, "CUDA")
        library.impl(f"{op}_backward", _sdpa_cuda_backward, "CUDA")
        if INTERPRETED:
            library.impl(f"{op}_for_cpu", _sdpa_cpu, "CPU")
            library.impl(f"{op}_for_cpu_backward", _backward, "CPU")
        self._library: torch.library.Library | None = library

    def remove(self) -> None:
        self._library = None


def _forward(
    query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0, is_causal: bool = False,
    *, attn_mask: Tensor | None = None, scale: float | None = None, seed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Compute the output, laid out as the query, and the log-sum-exp (B, H, T)."""
    op = "scaled_dot_product_attention"
    if not is_causal or attn_mask is not None:
        raise ValueError(
            f"{op}: the kernels compute causal attention without a mask, and this call is neither; "
            "pass is_causal=True, or undo with torch.nn.attention.restore_flash_attention_impl()"
        )
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    check_attention(op, q, k, v)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    o, lse, _ = attention_fwd(q, k, v, seed, None, scale, None, dropout_p, False, False)
    o = o.transpose(1, 2)
    return _laid_out_as(query, o), lse * LN2


def _laid_out_as(like: Tensor, x: Tensor) -> Tensor:
    """Return x with the strides of `torch.empty_like(like)`, which compiled code relies on."""
    out = torch.empty_like(like)
    return x if x.stride() == out.stride() else out.copy_(x)


def _sdpa_cpu(
    query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0, is_causal: bool = False,
    *, attn_mask: Tensor | None = None, scale: float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    out, lse = _forward(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)
    return out, lse.mT.contiguous().mT


def _backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, logsumexp: Tensor,
    dropout_p: float, is_causal: bool, *, attn_mask: Tensor | None = None,
    scale: float | None = None, seed: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    do, q, k, v, o = (x.transpose(1, 2) for x in (grad_out, query, key, value, out))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    deterministic = torch.are_deterministic_algorithms_enabled()
    dq, dk, dv = attention_bwd(
        do, q, k, v, o.contiguous(), logsumexp.contiguous() / LN2,
        seed, None, scale, None, dropout_p, False, deterministic, True, True,
    )  # fmt: skip
    return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2)


def _sdpa_cuda(
    query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0, is_causal: bool = False,
    return_debug_mask: bool = False, *, scale: float | None = None,
) -> tuple[Tensor | int | None, ...]:  # fmt: skip
    seed = draw_seed(query.device) if dropout_p > 0 else None
    out, lse = _forward(query, key, value, dropout_p, is_causal, scale=scale, seed=seed)
    # PyTorch's slot for the state of its generator, two 64-bit numbers, carries the seed.
    # ROCm builds have a slot for one.
    rng_state = torch.zeros(1 if torch.version.hip else 2, dtype=torch.int64, device=query.device)
    if seed is not None:
        rng_state[:1] = seed
    rng_state = rng_state[0] if torch.version.hip else rng_state.view(torch.uint64)
    length = query.shape[2]
    unused, debug_mask = rng_state.new_empty(()), query.new_empty(0)
    return out, lse, None, None, length, length, rng_state, unused, debug_mask


def _sdpa_cuda_backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, logsumexp: Tensor,
    cum_seq_q: Tensor | None, cum_seq_k: Tensor | None, max_q: int, max_k: int,
    dropout_p: float, is_causal: bool, philox_seed: Tensor, philox_offset: Tensor, *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    seed = philox_seed.view(torch.int64).reshape(-1)[:1] if dropout_p > 0 else None
    grads = _backward(
        grad_out, query, key, value, out, logsumexp, dropout_p, is_causal, scale=scale, seed=seed
    )
    dq, dk, dv = map(_laid_out_as, (query, key, value), grads)
    return dq, dk, dv
