"""Output head and cross-entropy in one operator: the logits of the whole batch never exist.

For hidden states x (N, C), head weight W (V, C) and targets t (N,), with n targets that count:

    logits_i = W x_i                               p_i = softmax(logits_i)
    loss     = 1/n sum_i (logsumexp(logits_i) - logits_i[t_i])
    dx_i     = 1/n (p_i - onehot(t_i)) W           dW = 1/n sum_i (p_i - onehot(t_i)) x_i^T

The gradient needs nothing but the logits, so it is formed right where they are: rows are taken in
chunks whose logits fit a byte budget, and each chunk is turned into p - onehot in place and
multiplied out at once. That saves the three logits-sized buffers of the usual head + cross-entropy
(logits, log-softmax, gradient), which at GPT-2's vocabulary are most of a training step's memory.

On a CPU the softmax of a chunk is taken a few rows at a time in fp32 scratch that stays in cache:
the whole-chunk form is bound by memory traffic and takes several times longer. Products run in the
compute dtype (autocast's when it is on); the softmax, the loss and the sum of dW over chunks in
fp32.
"""

import threading
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_BYTES = 256 * 2**20
CACHE_ELEMENTS = 2**19  # of a CPU softmax block: 2 MiB of fp32 scratch


def linear_cross_entropy_reference(
    x: Tensor, weight: Tensor, targets: Tensor, *, ignore_index: int = -100
) -> Tensor:
    """Mean cross-entropy of logits x W^T, plainly: the specification of `linear_cross_entropy`."""
    total = F.cross_entropy(x @ weight.T, targets, ignore_index=ignore_index, reduction="sum")
    return total / (targets != ignore_index).sum().clamp(min=1)


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    vocab_size: int | None = None,
    ignore_index: int = -100,
    chunk_bytes: int = CHUNK_BYTES,
) -> Tensor:
    """Mean next-token cross-entropy of the head `x @ weight.T`, in nats.

    Args:
        x: hidden states (N, C), floating point.
        weight: head weight (V, C). Rows from `vocab_size` on are padding and take no part.
        targets: class of each row (N,), int64, in [0, vocab_size) or `ignore_index`.
        vocab_size: number of real classes; None means V.
        ignore_index: rows with this target count neither in the loss nor in its mean.
        chunk_bytes: upper bound for the logits that exist at a time, in bytes.

    Returns:
        The loss, a float32 scalar; 0 with zero gradients when every target is ignored.
        A second backward pass through the same graph raises RuntimeError.

    Raises:
        ValueError: shapes that do not fit, or (on a CPU) a target outside [0, vocab_size).
    """
    vocab_size = len(weight) if vocab_size is None else vocab_size
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(f"expected x (N, C) and weight (V, C), got {x.shape} and {weight.shape}")
    if targets.shape != x.shape[:1] or targets.dtype != torch.int64:
        raise ValueError(
            f"expected int64 targets of shape ({len(x)},), got {targets.dtype} "
            f"{tuple(targets.shape)}"
        )
    dtype = x.dtype
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
    loss: Tensor = _LinearCrossEntropy.apply(
        x, weight, targets, dtype, vocab_size, ignore_index, chunk_bytes, torch.is_grad_enabled()
    )
    return loss


class HeadLoss(Protocol):
    """One signature for every implementation of output head and loss."""

    def __call__(
        self, x: Tensor, weight: Tensor, targets: Tensor, *, vocab_size: int | None
    ) -> Tensor: ...


def triton_linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, *, vocab_size: int | None
) -> Tensor:
    """The same by our kernel, see kernels/linear_cross_entropy.py."""
    from kernels.linear_cross_entropy import linear_cross_entropy

    return linear_cross_entropy(x, weight, targets, vocab_size=vocab_size)


LOSSES: dict[str, HeadLoss] = {
    "torch": linear_cross_entropy,
    "triton": triton_linear_cross_entropy,
}


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, x, weight, targets, dtype, vocab_size, ignore_index, chunk_bytes, with_grad
    ):
        ctx.dtypes = x.dtype, weight.dtype
        loss, dx, dw = _op(
            x.detach().to(dtype),
            weight.detach().to(dtype),
            targets,
            vocab_size,
            ignore_index,
            chunk_bytes,
            with_grad and ctx.needs_input_grad[0],
            with_grad and ctx.needs_input_grad[1],
        )
        ctx.save_for_backward(dx, dw)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        dx, dw = ctx.saved_tensors
        # In place, since dw is as large as the head. Autograd notices a second use of the buffers
        # by their version and refuses it.
        dx = dx.mul_(grad).to(ctx.dtypes[0]) if ctx.needs_input_grad[0] else None
        dw = dw.mul_(grad).to(ctx.dtypes[1]) if ctx.needs_input_grad[1] else None
        return dx, dw, None, None, None, None, None, None


# An opaque operator, so that torch.compile keeps the cache-sized blocks instead of fusing whole
# chunks.
@torch.library.custom_op("gpt2::linear_cross_entropy", mutates_args=())
def _op(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    vocab_size: int,
    ignore_index: int,
    chunk_bytes: int,
    need_dx: bool,
    need_dw: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, dx, dw); a gradient that is not needed comes as an empty tensor."""
    n_rows, n_columns = len(x), len(weight)
    counts = targets != ignore_index
    if x.device.type == "cpu":
        _check_targets(targets[counts], vocab_size)
    # The mean and the ignored rows are applied to the narrow factors x and dx, never to the logits.
    row_weight = counts / counts.sum().clamp(min=1)
    targets = targets.where(counts, 0)
    precise = _precise(x.dtype)
    loss = x.new_zeros((), dtype=precise)
    dx = torch.empty_like(x) if need_dx else x.new_empty(0)
    dw = weight.new_empty(weight.shape if need_dw else 0, dtype=precise)

    if not n_rows:
        dw.zero_()
    fitting = max(1, chunk_bytes // (n_columns * x.element_size()))
    chunk = -(-n_rows // max(1, -(-n_rows // fitting)))  # as few as fit, all about equal
    logits_buffer = _buffer(chunk, n_columns, x)
    for start in range(0, n_rows, max(1, chunk)):
        rows = slice(start, start + chunk)
        x_chunk, w_chunk = x[rows], row_weight[rows]
        logits = torch.mm(x_chunk, weight.T, out=logits_buffer[: len(x_chunk)])
        logits[:, vocab_size:] = -torch.inf
        loss += (_softmax_minus_onehot_(logits, targets[rows]) * w_chunk).sum()
        if need_dx:
            torch.mm(logits, weight, out=dx[rows]).mul_(w_chunk[:, None])
        if need_dw:
            _add_product_(dw, logits.T, x_chunk * w_chunk[:, None].to(x.dtype), first=start == 0)
    return loss, dx, dw


@_op.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    vocab_size: int,
    ignore_index: int,
    chunk_bytes: int,
    need_dx: bool,
    need_dw: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dx = torch.empty_like(x) if need_dx else x.new_empty(0)
    dw = weight.new_empty(weight.shape if need_dw else 0, dtype=_precise(x.dtype))
    return x.new_empty((), dtype=_precise(x.dtype)), dx, dw


def _softmax_minus_onehot_(logits: Tensor, targets: Tensor) -> Tensor:
    """Turn logits (N, V) into softmax - onehot(targets) in place; return losses (N,) in fp32."""
    N, V = logits.shape
    losses = logits.new_empty(N, dtype=_precise(logits.dtype))
    block = max(1, CACHE_ELEMENTS // V) if logits.device.type == "cpu" else N
    scratch = logits.new_empty(min(block, N), V, dtype=losses.dtype)
    for start in range(0, N, block):
        z = logits[start : start + block]
        target = targets[start : start + block, None]
        p = scratch[: len(z)].copy_(z)
        top = p.amax(dim=1)
        z_target = p.gather(1, target)[:, 0]
        torch.softmax(p, dim=1, out=p)
        # logsumexp without another pass of exponentials: the largest p is exp(top - logsumexp),
        # and as it is at least 1/V its logarithm is accurate.
        losses[start : start + block] = top - p.amax(dim=1).log() - z_target
        p.scatter_add_(1, target, torch.full_like(z_target, -1.0)[:, None])
        z.copy_(p)
    return losses


def _add_product_(total: Tensor, a: Tensor, b: Tensor, *, first: bool) -> None:
    """total (fp32) += a @ b; the first product overwrites."""
    if a.dtype == total.dtype:
        torch.addmm(total, a, b, beta=0 if first else 1, out=total)
        return
    # CPU products of 16-bit matrices accumulate in fp32 but can only be stored in 16 bits.
    product = torch.mm(a, b, out_dtype=total.dtype) if a.is_cuda else torch.mm(a, b)
    total.copy_(product) if first else total.add_(product)


class _Workspace(threading.local):
    """The last logits buffer on the CPU, one a thread.

    The C allocator gives so large a block back to the system each time, and taking it anew means a
    page fault every 4 KiB, which can cost as much time as the softmax itself.
    """

    buffer: Tensor | None = None


_workspace = _Workspace()


def _buffer(rows: int, columns: int, like: Tensor) -> Tensor:
    """An uninitialised (rows, columns), to be used before the next call only."""
    if like.device.type != "cpu":  # PyTorch's own allocators keep what is freed
        return like.new_empty(rows, columns)
    kept = _workspace.buffer
    if kept is None or kept.dtype != like.dtype or kept.numel() != rows * columns:
        _workspace.buffer = kept = like.new_empty(rows * columns)
    return kept.view(rows, columns)


def _precise(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)  # fp64 stays, for tests against it


def _check_targets(targets: Tensor, vocab_size: int) -> None:
    if len(targets) and not (int(targets.min()) >= 0 and int(targets.max()) < vocab_size):
        wrong = targets[(targets < 0) | (targets >= vocab_size)][0].item()
        raise ValueError(
            f"target {wrong} is outside the vocabulary [0, {vocab_size}): "
            "were these tokens made by another tokenizer?"
        )
