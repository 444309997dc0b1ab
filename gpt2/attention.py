"""Causal self-attention: the teaching steps, and the backends a model can be built with.

    attention(Q, K, V) = softmax(Q K^T / sqrt(D) + M) V,     M[i, j] = 0 if j <= i else -inf

Axes: B batch, T time, H heads, D head width. A backend takes the packed projection qkv (B, T, 3, H,
D) and returns (B, T, H, D), so that kernels can read it in place. With `window=w` each position
sees itself and the w - 1 before it; with `documents`, made by `kernels.documents.document_bounds`,
it sees its own document only. All backends compute the same function; `BACKENDS` lists them. One
that cannot do what it is asked raises: `gpt2.backends` finds out which can run where.

Source: Vaswani et al. 2017, arXiv:1706.03762; FlashAttention-2: Dao 2023, arXiv:2307.08691.
"""

import importlib
import importlib.util
import math
from functools import lru_cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention


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


def _forced(kernel: SDPBackend) -> Backend:
    """`sdpa` by one of PyTorch's kernels; RuntimeError where that one cannot do it."""

    def attend(qkv: Tensor, **options: Any) -> Tensor:
        with sdpa_kernel(kernel):
            return sdpa(qkv, **options)

    return attend


def flash(
    qkv: Tensor, *, window: int | None, dropout_p: float, documents: Tensor | None = None
) -> Tensor:
    """FlashAttention-2: the `flash_attn` package when installed, else PyTorch's kernel, forced.

    With documents the package waits for the GPU to learn how many there are.
    """
    options: dict[str, Any] = {"window": window, "dropout_p": dropout_p, "documents": documents}
    if not has_flash_attn(qkv.device.type):
        return BACKENDS["sdpa-flash"](qkv, **options)
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


@lru_cache
def has_flash_attn(device_type: str) -> bool:
    """Tell whether `flash` runs on the `flash_attn` package."""
    return device_type == "cuda" and importlib.util.find_spec("flash_attn") is not None


def _newer_flash(module: str) -> Backend:
    """FlashAttention-3 or 4: Dao's packages `flash_attn_interface` and `flash_attn.cute`."""

    def attend(
        qkv: Tensor, *, window: int | None, dropout_p: float, documents: Tensor | None = None
    ) -> Tensor:
        package = importlib.import_module(module)
        if dropout_p:
            raise ValueError(f"{module} has no dropout")
        options: dict[str, Any] = {"causal": True}
        if window is not None:
            options["window_size"] = (window - 1, 0)
        if documents is None:
            y = package.flash_attn_func(*qkv.unbind(2), **options)
        else:
            lengths, T = _cumulative_lengths(documents), qkv.shape[1]
            options |= {"cu_seqlens_q": lengths, "cu_seqlens_k": lengths}
            options |= {"max_seqlen_q": T, "max_seqlen_k": T}
            y = package.flash_attn_varlen_func(*qkv.flatten(0, 1).unbind(1), **options)
        o = y[0] if isinstance(y, tuple) else y  # with the log-sum-exp, in the fourth
        return o.view(*qkv.shape[:2], *qkv.shape[3:])

    return attend


def flex(
    qkv: Tensor, *, window: int | None, dropout_p: float, documents: Tensor | None = None
) -> Tensor:
    """FlexAttention, compiled for a GPU: blocks of scores that the mask hides are not computed."""
    if dropout_p:
        raise ValueError("FlexAttention has no dropout")
    q, k, v = (t.transpose(1, 2) for t in qkv.unbind(2))
    mask = _block_mask(q.shape[2], window, q.device, documents)
    # For training on a CPU PyTorch has it not: that is said sooner without a compiler.
    attend = flex_attention if q.device.type == "cpu" else _compiled_flex()
    return attend(q, k, v, block_mask=mask).transpose(1, 2)


@lru_cache
def _compiled_flex() -> Any:
    return torch.compile(flex_attention)


@lru_cache(maxsize=1)  # all layers of a model have the same
def _block_mask(
    T: int, window: int | None, device: torch.device, documents: Tensor | None
) -> BlockMask:
    def visible(b: Tensor, _: Tensor, i: Tensor, j: Tensor) -> Tensor:
        seen = j <= i
        if window is not None:
            seen &= j > i - window
        return seen if documents is None else seen & (j >= documents[0, b, i])

    B = None if documents is None else documents.shape[1]
    return create_block_mask(visible, B, None, T, T, device=str(device))


def triton(
    qkv: Tensor,
    *,
    window: int | None,
    dropout_p: float,
    documents: Tensor | None = None,
    largest: Tensor | None = None,
) -> Tensor:
    """Our fused kernel, see kernels/attention.py.

    The numbers `largest` (H,) are raised to the largest logit of each head.
    """
    from kernels.attention import attention_qkvpacked

    options: dict[str, Any] = {"window": window, "dropout_p": dropout_p, "documents": documents}
    if largest is None:
        return attention_qkvpacked(qkv, **options)
    y, found = attention_qkvpacked(qkv, **options, return_max_logit=True)
    largest.copy_(torch.maximum(largest, found))
    return y


def attend_past(q: Tensor, kv: Tensor, mask: Tensor | None) -> Tensor:
    """Attend from new queries to the keys and values of a cache.

    One token has one row of scores and no future to hide: there is nothing to fuse or to tile.

    Args:
        q: queries (B, T, H, D).
        kv: keys and values of S >= T positions (B, S, 2, H, D).
        mask: (B, 1, T, S), True where a query may see a key; None if every query sees all.

    Returns:
        (B, T, H, D).
    """
    dtype = q.dtype
    if q.device.type == "cpu" and q.shape[1] == 1:
        # PyTorch's kernel is several times slower for one query in 16 bits than in 32.
        precise = torch.promote_types(dtype, torch.float32)
        q, kv = q.to(precise), kv.to(precise)
    q, k, v = (t.transpose(1, 2) for t in (q, *kv.unbind(2)))
    if q.shape[2] == 1 and torch.compiler.is_compiling():
        # Sums, which the compiler fuses with the conversions, that of all keys and values included.
        scores = (q * k).sum(-1) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask[:, :, 0], -torch.inf)
        y = (scores.softmax(-1)[..., None] * v).sum(2, keepdim=True)
    else:
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return y.transpose(1, 2).to(dtype)


def attend_past_triton(q: Tensor, kv: Tensor, window: int | None) -> Tensor:
    """Attend from several queries, the last of all positions, by our fused kernel.

    Args:
        q: queries (B, T, H, D).
        kv: keys and values of S >= T positions (B, S, 2, H, D).
        window: as in a backend.

    Returns:
        (B, T, H, D). There is no backward.
    """
    from kernels.attention import attention

    k, v = kv.unbind(2)
    return attention(q, k, v, window=window)


BACKENDS: dict[str, Backend] = {
    "naive": naive,
    "sdpa": sdpa,
    "sdpa-math": _forced(SDPBackend.MATH),
    "sdpa-efficient": _forced(SDPBackend.EFFICIENT_ATTENTION),
    "sdpa-flash": _forced(SDPBackend.FLASH_ATTENTION),
    "sdpa-cudnn": _forced(SDPBackend.CUDNN_ATTENTION),
    "flash": flash,
    "flash3": _newer_flash("flash_attn_interface"),
    "flash4": _newer_flash("flash_attn.cute"),
    "flex": flex,
    "triton": triton,
}


def _self_check() -> None:
    """Print who sees whom, and what the scale is for."""
    torch.manual_seed(0)
    print("who sees whom (rows: queries, columns: keys), causal, and with a window of 2:")
    for rows in zip(causal_mask(5), causal_mask(5, window=2), strict=True):
        print("".join("    " + " ".join("x" if seen else "." for seen in row) for row in rows))
    for D in (16, 64, 256):
        scores = torch.randn(2000, D) @ torch.randn(D, 64)
        variance = scores.var()
        print(f"D = {D:3}: variance of q.k {variance:6.1f}, of q.k / sqrt(D) {variance / D:.2f}")


if __name__ == "__main__":
    _self_check()
