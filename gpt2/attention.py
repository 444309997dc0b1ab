"""Causal self-attention: the teaching steps, and the backends a model can be built with.

    attention(Q, K, V) = softmax(Q K^T / sqrt(D) + M) V,     M[i, j] = 0 if j <= i else -inf

Axes: B batch, T time, H heads, D head width. A backend takes the packed projection qkv (B, T, 3, H,
D) and returns (B, T, H, D), so that kernels can read it in place. With `window=w` each position
sees itself and the w - 1 before it; with `documents`, made by `kernels.documents.document_bounds`,
it sees its own document only. All backends compute the same function; `BACKENDS` lists them, and
`unusable` says why one cannot run somewhere. An explicit choice is never replaced by another.

Source: Vaswani et al. 2017, arXiv:1706.03762; FlashAttention-2: Dao 2023, arXiv:2307.08691.
"""

import importlib.util
import math
import os
from functools import lru_cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpt2.config import GPTConfig


def causal_mask(T: int, window: int | None = None, device: torch.device | None = None) -> Tensor:
    """Boolean (T, T): True where query i may see key j, that is i - window < j <= i."""
    mask = torch.ones(T, T, dtype=torch.bool, device=device).tril()
    return mask if window is None else mask.triu(1 - window)


def _mask(T: int, window: int | None, documents: Tensor | None, device: torch.device) -> Tensor:
    """The mask (T, T), or with documents (B, 1, T, T): each row has its own."""
    mask = causal_mask(T, window, device)
    if documents is None:
        return mask
    begins = documents[0]
    return mask & (begins[:, None, :, None] == begins[:, None, None, :])


class BasicAttention(torch.nn.Module):
    """Step 1: every position averages the values by similarity, softmax(Q K^T) V.

    It sees the future, and its scores grow with D until the softmax saturates.
    q, k and v are (..., T, D), and so is the result.
    """

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT).softmax(dim=-1) @ v


class ScaledAttention(torch.nn.Module):
    """Step 2: softmax(Q K^T / sqrt(D) + M) V, with a mask.

    For independent unit-variance q and k, q.k has variance D; the division makes it 1 again.
    q, k and v are (..., T, D), and so is the result.

    The mask broadcasts to (..., T, T): boolean, or of any number type with 0 and 1. True or 1 means
    that query i may see key j, M[i, j] = 0; False or 0 means that it may not, M[i, j] = -inf. A
    query that may see no key gets 0. Any other mask is a ValueError.
    """

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        if mask is None:
            return scores.softmax(dim=-1) @ v
        hidden = ~_as_bool(mask)
        blind = hidden.all(dim=-1, keepdim=True)
        # Over no key the softmax would be 0/0, and its gradient NaN.
        weights = scores.masked_fill(hidden & ~blind, -torch.inf).softmax(dim=-1)
        return weights.masked_fill(blind, 0.0) @ v


def _as_bool(mask: Tensor) -> Tensor:
    if mask.dtype != torch.bool and not ((mask == 0) | (mask == 1)).all():
        raise ValueError(
            "the mask must be boolean, or hold 1 for visible and 0 for hidden keys alone; got "
            f"{mask.dtype} with other values (an additive mask of 0 and -inf is meant as mask == 0)"
        )
    return mask.bool()


class Backend(Protocol):
    """Step 3: one signature for every implementation. qkv (B, T, 3, H, D) -> (B, T, H, D)."""

    def __call__(
        self, qkv: Tensor, *, window: int | None, dropout_p: float, documents: Tensor | None
    ) -> Tensor: ...


def naive(
    qkv: Tensor, *, window: int | None, dropout_p: float, documents: Tensor | None = None
) -> Tensor:
    """Masked matrix products; the softmax in fp32, also under autocast. O(T^2) memory."""
    q, k, v = (t.transpose(1, 2) for t in qkv.unbind(2))  # (B, H, T, D)
    T, D = q.shape[2:]
    precise = torch.promote_types(q.dtype, torch.float32)
    visible = _mask(T, window, documents, q.device)
    mask = torch.zeros(visible.shape, dtype=precise, device=q.device)
    mask.masked_fill_(~visible, -torch.inf)
    scores = torch.add(mask, q @ k.mT, alpha=1 / math.sqrt(D))
    weights = F.dropout(scores.softmax(dim=-1), dropout_p).to(v.dtype)
    return (weights @ v).transpose(1, 2)


def sdpa(
    qkv: Tensor, *, window: int | None, dropout_p: float, documents: Tensor | None = None
) -> Tensor:
    """`F.scaled_dot_product_attention`: PyTorch picks the kernel. A window is an O(T^2) mask.

    Documents are attended to one by one on a CPU, where nothing waits to learn their lengths; on a
    GPU and in a compiled model they are a mask as well.
    """
    if documents is not None and qkv.device.type == "cpu" and not torch.compiler.is_compiling():
        lengths = _cumulative_lengths(documents).diff().tolist()
        parts = qkv.flatten(0, 1)[None].split(lengths, dim=1)
        done = [sdpa(part, window=window, dropout_p=dropout_p) for part in parts]
        return torch.cat(done, dim=1).view(*qkv.shape[:2], *qkv.shape[3:])
    q, k, v = (t.transpose(1, 2) for t in qkv.unbind(2))
    T = q.shape[2]
    if documents is None and (window is None or window >= T):
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout_p)
    else:
        mask = _mask(T, window, documents, q.device)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p)
    return y.transpose(1, 2)


def _cumulative_lengths(documents: Tensor) -> Tensor:
    """Where the documents begin in the rows of a batch put one after another, and the end, int32.

    The number of documents is read back from the device.
    """
    begins = documents[0]
    first = (begins == torch.arange(begins.shape[1], device=begins.device)).flatten()
    return F.pad(first.nonzero().flatten(), (0, 1), value=len(first)).int()


def flash(
    qkv: Tensor, *, window: int | None, dropout_p: float, documents: Tensor | None = None
) -> Tensor:
    """FlashAttention-2: the `flash_attn` package when installed, else PyTorch's kernel, forced.

    With documents the package waits for the GPU to learn how many there are.
    """
    if not _use_flash_attn_package(qkv.device.type):
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return sdpa(qkv, window=None, dropout_p=dropout_p, documents=documents)
    import flash_attn

    options = {
        "dropout_p": dropout_p,
        "causal": True,
        "window_size": (-1 if window is None else window - 1, 0),
    }
    if documents is None:
        return flash_attn.flash_attn_qkvpacked_func(qkv, **options)
    y = flash_attn.flash_attn_varlen_qkvpacked_func(
        qkv.flatten(0, 1), _cumulative_lengths(documents), qkv.shape[1], **options
    )
    return y.view(*qkv.shape[:2], *qkv.shape[3:])


def triton(
    qkv: Tensor, *, window: int | None, dropout_p: float, documents: Tensor | None = None
) -> Tensor:
    """Our fused kernel, see kernels/attention.py."""
    from kernels.attention import attention_qkvpacked

    return attention_qkvpacked(qkv, window=window, dropout_p=dropout_p, documents=documents)


def attend_past(q: Tensor, kv: Tensor, mask: Tensor | None) -> Tensor:
    """Attend from new queries to the keys and values of a cache, whatever the backend.

    One token has one row of scores and no future to hide: there is nothing to fuse or to tile.

    Args:
        q: queries (B, T, H, D).
        kv: keys and values of S >= T positions (B, S, 2, H, D).
        mask: (B, 1, T, S), True where a query may see a key; None if every query sees all.

    Returns:
        (B, T, H, D).
    """
    k, v = (t.transpose(1, 2) for t in kv.unbind(2))
    y = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=mask)
    return y.transpose(1, 2)


BACKENDS: dict[str, Backend] = {"naive": naive, "sdpa": sdpa, "flash": flash, "triton": triton}


def unusable(
    name: str, config: GPTConfig, *, device: torch.device, dtype: torch.dtype
) -> str | None:
    """The reason why backend `name` cannot run a model of `config` in `dtype` on `device`, with the
    remedy; None if it can."""
    if name not in BACKENDS:
        return f"there is no such attention backend: choose one of {', '.join(BACKENDS)}"
    if name == "flash":
        return _flash_unusable(config, device, dtype)
    if name == "triton" and config.head_dim > 256:
        return f"our kernel takes head widths up to 256, got {config.head_dim}; use more heads"
    if name == "triton":
        return triton_unusable(device, instead="--attn sdpa")
    return None


def describe(name: str, device: torch.device) -> str:
    """Name the implementation behind a backend on this machine, in a few words."""
    if name == "flash":
        package = _use_flash_attn_package(device.type)
        return "flash_attn package" if package else "PyTorch's FlashAttention kernel, forced"
    if name == "triton":
        return "our Triton kernel" + _limits(device)
    named = {"naive": "masked matrix products", "sdpa": "PyTorch's scaled_dot_product_attention"}
    return named.get(name, "a backend of your own")


def _limits(device: torch.device) -> str:
    """What makes our kernel slow on a device, or whose tile sizes it takes."""
    if device.type == "cpu":
        return ", interpreted"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return ", slow here: before compute capability 8.0 Triton uses no tensor cores"
    from kernels._attention.tiles import rows_of
    from kernels._common.launch import architecture

    card = architecture(device)
    rows = rows_of(card)
    taken = "small ones" if rows == "other" else f"those of {rows}"
    return "" if rows == card else f", whose table has no tile sizes for {card} and takes {taken}"


@lru_cache
def _use_flash_attn_package(device_type: str) -> bool:
    return device_type == "cuda" and importlib.util.find_spec("flash_attn") is not None


def _flash_unusable(config: GPTConfig, device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type not in ("cpu", "cuda"):
        return f"FlashAttention has no kernel for {device.type}; use --attn sdpa"
    if config.head_dim > 256:
        return f"FlashAttention takes head widths up to 256, got {config.head_dim}; use more heads"
    if device.type == "cuda":
        if dtype not in (torch.float16, torch.bfloat16):
            return f"FlashAttention on CUDA takes fp16 and bf16, got {dtype}; use --dtype bf16"
        capability = torch.cuda.get_device_capability(device)
        if capability < (8, 0):
            return (
                "FlashAttention-2 needs compute capability 8.0 (A100, RTX 30) or newer, and "
                f"{torch.cuda.get_device_name(device)} has {capability[0]}.{capability[1]}; "
                "use --attn sdpa"
            )
    if not _use_flash_attn_package(device.type):
        if config.window is not None:
            return (
                "PyTorch's FlashAttention kernel has no sliding window; "
                "pip install -e '.[flash]' on a CUDA machine, or use --attn sdpa"
            )
        if config.attend == "within-documents" and device.type == "cuda":
            return (
                "PyTorch's FlashAttention kernel sees through the ends of documents; "
                "pip install -e '.[flash]', or use --attn triton or sdpa"
            )
        if config.dropout and device.type == "cpu":
            return "PyTorch's FlashAttention kernel for CPUs has no dropout; use --attn sdpa"
    return None


def triton_unusable(device: torch.device, *, instead: str) -> str | None:
    """The reason why none of our kernels can run on `device`, with the remedy; None if they can.

    `instead` names the option that does without them.
    """
    if importlib.util.find_spec("triton") is None:
        return f"Triton is not installed (it exists for Linux); use {instead}"
    if device.type not in ("cpu", "cuda"):
        return f"Triton has no {device.type} compiler; use {instead}"
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "on a CPU Triton runs in its interpreter: set TRITON_INTERPRET=1 before Python"
    return None


def _self_check() -> None:
    """Print who sees whom, what the scale is for, and how far each backend is from float64."""
    torch.manual_seed(0)
    print("who sees whom (rows: queries, columns: keys), causal, and with a window of 2:")
    for rows in zip(causal_mask(5), causal_mask(5, window=2), strict=True):
        print("".join("    " + " ".join("x" if seen else "." for seen in row) for row in rows))
    for D in (16, 64, 256):
        scores = torch.randn(2000, D) @ torch.randn(D, 64)
        variance = scores.var()
        print(f"D = {D:3}: variance of q.k {variance:6.1f}, of q.k / sqrt(D) {variance / D:.2f}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    for window in (None, 16):
        print(f"largest distance from float64, {dtype} on {device.type}, window {window}:")
        config = GPTConfig(n_head=4, n_embd=128, window=window)
        qkv = torch.randn(2, 100, 3, 4, 32, device=device, dtype=dtype)
        exact = naive(qkv.double(), window=window, dropout_p=0.0)
        for name, backend in BACKENDS.items():
            reason = unusable(name, config, device=device, dtype=dtype)
            if reason is None:
                y = backend(qkv, window=window, dropout_p=0.0, documents=None)
                error = (y - exact).abs().max() / exact.max()
                # Sums in another order: a few roundings of values below the largest.
                assert error <= 8 * torch.finfo(dtype).eps, f"{name} is {error:.1e} from float64"
            print(f"    {name}: {reason or f'{error:.1e} ({describe(name, device)})'}")


if __name__ == "__main__":
    _self_check()
