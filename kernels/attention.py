"""Causal attention, forward and backward, without ever storing a score matrix.

For one head, with q, k, v of shape (T, D), scores over the visible keys j of row i (j <= i, and
j > i - window if there is one, and in the document of i if there are several), and Z the dropout
mask (0 or 1/(1-p); 1 without dropout):

    S = scale * q k^T               L_i = log sum_j exp S_ij          P = exp(S - L)
    o = (Z * P) v

    delta = rowsum(o * do)          dP = Z * (do v^T)                 dS = P * (dP - delta)
    dv = (Z * P)^T do               dq = scale * dS k                 dk = scale * dS^T q

The backward computes P again from L, so memory is linear in T. `kernels._attention.kernels` cuts
the work into tiles, `kernels._attention.tiles` holds their sizes, and
`kernels._attention.operators` launches the kernels.

Precision: products take the input's dtype and sum in float32 (IEEE for float32 inputs, unless TF32
is asked for); everything else is float32. o is rounded once, after the division by the sum of its
row: where several scores tie at the maximum, so that P v is exact, rounding before it has a bias
(Qiu and Yao, arXiv 2510.04212), and rounding after it has none.

Sources: Dao, FlashAttention-2 (arXiv 2307.08691); Milakov and Gimelshein, Online normalizer
calculation for softmax (arXiv 1805.02867); Salmon et al., Philox (SC 2011).

Axes: B batch, T time, H heads, D head width.
"""

import math
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels._attention.operators import (
    MAX_TIME_STRIDE,
    attention_bwd,
    attention_fwd,
    attention_qkvpacked_bwd,
)
from kernels._common.launch import check_launchable

MAX_HEAD_WIDTH = 256
LN2 = math.log(2)  # the operators pass the log-sum-exp in base 2


def attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    window: int | None = None,
    dropout_p: float = 0.0,
    keep: Tensor | None = None,
    documents: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Causal attention in plain PyTorch, in the dtype that it is given: the specification.

    Args:
        q: (B, T, H, D), the last T of the positions of k and v.
        k, v: (B, S, H, D), S >= T.
        scale: factor of the scores, 1 / sqrt(D) by default.
        window: each position sees itself and the window - 1 before it; all before it by default.
        dropout_p: the fraction of probabilities that `keep` drops.
        keep: (B, H, T, S) bool, True where a probability is kept, as
            `kernels._attention.operators.dropout_mask` reads it out.
        documents: (2, B, T) int32 as in `attention`: no position sees another document.

    Returns:
        o: (B, T, H, D), and the log-sum-exp of the scores (B, H, T).
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * scale
    positions = torch.arange(k.shape[1], device=q.device)
    behind = positions[k.shape[1] - q.shape[1] :, None] - positions[None, :]
    visible = behind >= 0
    if window is not None:
        visible &= behind < window
    if documents is not None:
        begins = documents[0]
        visible = visible & (begins[:, None, :, None] == begins[:, None, None, :])
    scores = scores.masked_fill(~visible, -math.inf)
    p = scores.softmax(-1)
    if keep is not None:
        p = p * keep / (1 - dropout_p)
    return torch.einsum("bhij,bjhd->bihd", p, v), scores.logsumexp(-1)


class _Settings(NamedTuple):
    """The options of a call, checked and with defaults filled in, in the order of the operators."""

    scale: float
    window: int | None
    dropout_p: float
    allow_tf32: bool
    deterministic: bool


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, seed, documents, settings, need_max):
        ctx.settings = settings
        o, lse, row_max = attention_fwd(q, k, v, seed, documents, *settings[:-1], need_max)
        ctx.save_for_backward(q, k, v, o, lse, seed, documents)
        ctx.mark_non_differentiable(lse, row_max)
        return o, lse, row_max

    @staticmethod
    @once_differentiable
    def backward(ctx, do, *_):
        need_dq, *need_dkv = ctx.needs_input_grad[:3]
        grads = attention_bwd(do, *ctx.saved_tensors, *ctx.settings, need_dq, any(need_dkv))
        wanted = (g if need else None for g, need in zip(grads, (need_dq, *need_dkv), strict=True))
        return *wanted, None, None, None, None


class _AttentionQkvPacked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv, seed, documents, settings, need_max):
        ctx.settings = settings
        o, lse, row_max = attention_fwd(*qkv.unbind(2), seed, documents, *settings[:-1], need_max)
        ctx.save_for_backward(qkv, o, lse, seed, documents)
        ctx.mark_non_differentiable(lse, row_max)
        return o, row_max

    @staticmethod
    @once_differentiable
    def backward(ctx, do, _):
        return attention_qkvpacked_bwd(do, *ctx.saved_tensors, *ctx.settings), *[None] * 4


def check_attention(op: str, q: Tensor, k: Tensor, v: Tensor, *, longer: bool = False) -> None:
    """Raise ValueError, in the name of `op`, unless the kernels can take these (B, T, H, D).

    With `longer`, k and v may have more positions than q.
    """
    check_launchable(op, q, k, v)
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 4:
            raise ValueError(f"{op}: {name} must be (B, T, H, D), got shape {tuple(x.shape)}")
        shape = (len(q), k.shape[1] if longer and name != "q" else q.shape[1], *q.shape[2:])
        if x.shape != shape or k.shape[1] < q.shape[1]:
            more = " (k and v may have more positions)" if longer else ""
            raise ValueError(
                f"{op}: q, k and v must have one shape{more}, got {tuple(q.shape)} for q, "
                f"{tuple(k.shape)} for k and {tuple(v.shape)} for v"
            )
        if x.stride(3) != 1 and x.shape[3] > 1:
            raise ValueError(
                f"{op}: the last stride of {name} must be 1, got {x.stride(3)}; "
                f"call {name}.contiguous()"
            )
        if x.stride(1) >= MAX_TIME_STRIDE:
            raise ValueError(
                f"{op}: the time stride of {name} must be below {MAX_TIME_STRIDE} elements, "
                f"got {x.stride(1)}; call {name}.contiguous()"
            )
    if not 1 <= q.shape[3] <= MAX_HEAD_WIDTH:
        raise ValueError(
            f"{op}: head width must be 1..{MAX_HEAD_WIDTH}, got {q.shape[3]}; use more heads"
        )


def draw_seed(device: torch.device) -> Tensor:
    """A dropout seed from PyTorch's generator, on the device: no sync; a CUDA graph can do it."""
    return torch.randint(2**63 - 1, (1,), device=device)


def _is_seed(seed: object, device: torch.device) -> bool:
    return (
        isinstance(seed, Tensor)
        and (seed.dtype, seed.numel(), seed.device) == (torch.int64, 1, device)
    )  # fmt: skip


def _check_options(
    op: str, q: Tensor, documents: Tensor | None, scale: float | None, window: int | None,
    dropout_p: float, dropout_seed: Tensor | None, deterministic: bool | None, allow_tf32: bool,
) -> tuple[Tensor | None, _Settings]:  # fmt: skip
    """Check the options of a call, and return the seed of its dropout and its settings."""
    if scale is None:
        scale = q.shape[-1] ** -0.5
    if documents is not None and (
        (documents.dtype, documents.shape, documents.device)
        != (torch.int32, (2, *q.shape[:2]), q.device)
        or not documents.is_contiguous()
    ):
        raise ValueError(
            f"{op}: documents must be a contiguous int32 tensor {(2, *q.shape[:2])} on {q.device}, "
            f"as kernels.documents.document_bounds makes it, got {documents.dtype} "
            f"{tuple(documents.shape)} on {documents.device}"
        )
    if not 0 < scale < math.inf:
        raise ValueError(f"{op}: scale must be positive, got {scale}")
    if window is not None and window < 1:
        raise ValueError(
            f"{op}: window must be at least 1 (each position sees itself), got {window}"
        )
    if not 0 <= dropout_p < 1:
        raise ValueError(f"{op}: dropout_p must be in [0, 1), got {dropout_p}")
    if dropout_p == 0:
        dropout_seed = None
    elif dropout_seed is None:
        dropout_seed = draw_seed(q.device)
    elif not _is_seed(dropout_seed, q.device):
        raise ValueError(
            f"{op}: dropout_seed must be an int64 tensor of one element on {q.device}, got "
            f"{dropout_seed!r}"
        )
    if deterministic is None:
        deterministic = torch.are_deterministic_algorithms_enabled()
    return dropout_seed, _Settings(scale, window, dropout_p, allow_tf32, deterministic)


@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = ..., window: int | None = ...,
    documents: Tensor | None = ..., dropout_p: float = ..., dropout_seed: Tensor | None = ...,
    deterministic: bool | None = ..., allow_tf32: bool = ..., return_lse: Literal[False] = ...,
) -> Tensor: ...  # fmt: skip


@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = ..., window: int | None = ...,
    documents: Tensor | None = ..., dropout_p: float = ..., dropout_seed: Tensor | None = ...,
    deterministic: bool | None = ..., allow_tf32: bool = ..., return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = ..., window: int | None = ...,
    documents: Tensor | None = ..., dropout_p: float = ..., dropout_seed: Tensor | None = ...,
    deterministic: bool | None = ..., allow_tf32: bool = ..., return_lse: bool = ...,
    return_max_logit: Literal[True],
) -> tuple[Tensor, ...]: ...  # fmt: skip


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    window: int | None = None,
    documents: Tensor | None = None,
    dropout_p: float = 0.0,
    dropout_seed: Tensor | None = None,
    deterministic: bool | None = None,
    allow_tf32: bool = False,
    return_lse: bool = False,
    return_max_logit: bool = False,
) -> Tensor | tuple[Tensor, ...]:
    """Fused causal attention: softmax(scale * q k^T + causal mask) v.

    Args:
        q, k, v: (B, T, H, D), float16, bfloat16 or float32, D at most 256. Read in place with any
            strides but a unit last one, so views of one packed projection cost nothing. k and v may
            have more positions: q has the last ones then, as where a text goes on from a cache (its
            mask is aligned to the bottom right). There is no backward of that.
        scale: factor of the scores, 1 / sqrt(D) by default.
        window: each position sees itself and the `window - 1` before it, and the work is linear in
            T; by default it sees all before it.
        documents: each position sees only its own document, and the work is proportional to the sum
            of their squared lengths: (2, B, T) int32, for each position where its document begins
            and ends, as `kernels.documents.document_bounds` makes it. Positions that do not agree
            with one another give wrong results; they are not checked, as that would wait for the
            GPU.
        dropout_p: probability of dropping a softmax probability, in [0, 1). The mask is a function
            of the seed and of (batch, head, row, column), computed again in the backward.
        dropout_seed: int64 tensor of one element on the device; by default drawn from PyTorch's
            generator, so that `torch.manual_seed` repeats it.
        deterministic: the backward gives the same bits every time, at 7 products for 5. By default
            as `torch.use_deterministic_algorithms` says.
        allow_tf32: let float32 inputs be rounded to TF32 in the products.
        return_lse: also return the log-sum-exp of the scores.
        return_max_logit: also return the largest score of each head, scaled: where it grows without
            bound, training becomes unstable (QK-clip, arXiv 2507.20534).

    Returns:
        o: (B, T, H, D) contiguous, in the dtype of q; with return_lse or return_max_logit a tuple
        of it, the log-sum-exp (B, H, T) and the largest logits (H,), those that are asked for, in
        float32. No gradient flows through them.

    Raises:
        ValueError: a shape, stride, dtype, device or option that the kernels cannot take.

    Source:
        Dao, FlashAttention-2: faster attention with better parallelism and work partitioning,
        arXiv 2307.08691.
    """
    check_attention("attention", q, k, v, longer=True)
    if q.shape[1] < k.shape[1]:
        if documents is not None:
            raise ValueError("attention: documents need as many queries as keys")
        if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
            raise ValueError(
                "attention: the backward needs as many queries as keys, got "
                f"{q.shape[1]} and {k.shape[1]}; use torch.no_grad()"
            )
    seed, settings = _check_options(
        "attention", q, documents, scale, window, dropout_p, dropout_seed, deterministic, allow_tf32
    )
    o, lse, row_max = _Attention.apply(q, k, v, seed, documents, settings, return_max_logit)
    found = [o]
    if return_lse:
        found.append(lse * LN2)
    if return_max_logit:
        found.append(_max_logit(row_max))
    return tuple(found) if len(found) > 1 else o


def _max_logit(row_max: Tensor) -> Tensor:
    """The largest score of each head, (H,), of those of the rows in base 2 (B, H, T)."""
    if row_max.numel() == 0:
        return row_max.new_full(row_max.shape[1:2], -math.inf)
    return row_max.amax((0, 2)) * LN2


def attention_qkvpacked(
    qkv: Tensor,
    *,
    scale: float | None = None,
    window: int | None = None,
    documents: Tensor | None = None,
    dropout_p: float = 0.0,
    dropout_seed: Tensor | None = None,
    deterministic: bool | None = None,
    allow_tf32: bool = False,
    return_max_logit: bool = False,
) -> Any:
    """`attention` on a packed projection, whose gradient is written as one packed tensor.

    Args:
        qkv: (B, T, 3, H, D): q, k and v along axis 2, as one linear layer gives them. Any strides
            but a unit last one; nothing is copied, nor concatenated in the backward.
        scale, window, documents, dropout_p, dropout_seed, deterministic, allow_tf32,
            return_max_logit: as in `attention`.

    Returns:
        o: (B, T, H, D) contiguous, in the dtype of qkv; with return_max_logit, a tuple of it and
        the largest logits (H,).

    Raises:
        ValueError: a shape, stride, dtype, device or option that the kernels cannot take.

    Source:
        As `attention`.
    """
    if qkv.dim() != 5 or qkv.shape[2] != 3:
        raise ValueError(
            f"attention_qkvpacked: qkv must be (B, T, 3, H, D), got shape {tuple(qkv.shape)}"
        )
    q = qkv[:, :, 0]  # k and v have its shape and strides
    check_attention("attention_qkvpacked", q, q, q)
    seed, settings = _check_options(
        "attention_qkvpacked", q, documents, scale, window, dropout_p, dropout_seed, deterministic,
        allow_tf32,
    )  # fmt: skip
    o, row_max = _AttentionQkvPacked.apply(qkv, seed, documents, settings, return_max_logit)
    return (o, _max_logit(row_max)) if return_max_logit else o
