"""Output head and cross-entropy in one operator: the logits of the whole batch never exist.

For hidden states x (N, C), head weight W (V, C) and targets t (N,), with n targets that count:

    logits_i = W x_i                               p_i = softmax(logits_i)
    loss     = 1/n sum_i (logsumexp(logits_i) - logits_i[t_i])
    dx_i     = 1/n (p_i - onehot(t_i)) W           dW = 1/n sum_i (p_i - onehot(t_i)) x_i^T

The gradient needs nothing but the logits, so it is formed right where they are: rows are taken in
chunks whose logits fit a byte budget, and each chunk is turned into p - onehot in place and
multiplied out at once. That saves the three logits-sized buffers of the usual head + cross-entropy
(logits, log-softmax, gradient), which at GPT-2's vocabulary are most of a training step's memory.

`kernel="torch"` is this file, in PyTorch's operators; "triton" is kernels/linear_cross_entropy.py,
the same with a fused softmax. On a CPU the softmax of a chunk is taken a few rows at a time in fp32
scratch that stays in cache: the whole-chunk form is bound by memory traffic and takes several times
longer. Products run in the compute dtype (autocast's when it is on); the softmax, the loss and the
sum of dW over chunks in fp32.
"""

import threading

import torch
from torch import Tensor

from gpt2.config import Kernel
from kernels._common.head import check_head, chunk_rows, count_targets, scaled_gradients

CHUNK_BYTES = 256 * 2**20
CACHE_ELEMENTS = 2**19  # of a CPU softmax block: 2 MiB of fp32 scratch


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    vocab_size: int | None = None,
    ignore_index: int = -100,
    chunk_bytes: int | None = None,
    kernel: Kernel = "torch",
) -> Tensor:
    """Mean next-token cross-entropy of the head `x @ weight.T`, in nats.

    Args:
        x: hidden states (N, C), floating point.
        weight: head weight (V, C). Rows from `vocab_size` on are padding and take no part.
        targets: class of each row (N,), int64, in [0, vocab_size) or `ignore_index`.
        vocab_size: number of real classes; None means V.
        ignore_index: rows with this target count neither in the loss nor in its mean.
        chunk_bytes: upper bound for the logits that exist at a time, in bytes; None leaves
            it to the kernel.
        kernel: "torch" or "triton".

    Returns:
        The loss, a float32 scalar; 0 with zero gradients when every target is ignored.
        A second backward pass through the same graph raises RuntimeError; under `torch.compile`,
        which takes nothing in place, it gives the same bits.

    Raises:
        ValueError: shapes that do not fit, or (on a CPU) a target outside [0, vocab_size).
    """
    if kernel == "triton":
        from kernels import linear_cross_entropy as fused

        return fused.linear_cross_entropy(
            x,
            weight,
            targets,
            vocab_size=vocab_size,
            ignore_index=ignore_index,
            chunk_bytes=chunk_bytes or fused.CHUNK_BYTES,
        )
    check_head("linear_cross_entropy", x, weight, targets)
    dtype = x.dtype
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
    vocab_size = len(weight) if vocab_size is None else vocab_size
    settings = (vocab_size, ignore_index, chunk_bytes or CHUNK_BYTES)
    loss: Tensor = _LinearCrossEntropy.apply(
        x, weight, targets, dtype, settings, torch.is_grad_enabled()
    )
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, targets, dtype, settings, with_grad):  # type: ignore[no-untyped-def]
        ctx.dtypes = x.dtype, weight.dtype
        needs = [with_grad and need for need in ctx.needs_input_grad[:2]]
        loss, *saved = _op(
            x.detach().to(dtype), weight.detach().to(dtype), targets, *settings, *needs
        )
        ctx.save_for_backward(*saved)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dloss):  # type: ignore[no-untyped-def]
        return *scaled_gradients(ctx, dloss), None, None, None, None


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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, count, dx, dw), the gradients of the rows' sum; one that is not needed is empty."""
    count = count_targets(targets, ignore_index, vocab_size)
    counted = targets != ignore_index
    # Ignored rows are left out of the narrow x and dx, never of the wide logits: zeros in x give
    # no dW.
    x = x.where(counted[:, None], 0)
    targets = targets.where(counted, 0)
    losses = x.new_zeros(len(x), dtype=_precise(x.dtype))
    dx = torch.empty_like(x) if need_dx else x.new_empty(0)
    dw = weight.new_empty(weight.shape if need_dw else 0, dtype=losses.dtype)
    if not len(x):
        return losses.sum(), count, dx, dw.zero_()

    chunk = chunk_rows(len(x), len(weight) * x.element_size(), chunk_bytes)
    buffer = _buffer(chunk, len(weight), x)
    # Autocast would cast dW, the one operand that is meant to be float32.
    with torch.autocast(x.device.type, enabled=False):
        for start in range(0, len(x), chunk):
            rows = slice(start, min(start + chunk, len(x)))
            logits = torch.mm(x[rows], weight.T, out=buffer[: rows.stop - start])
            logits[:, vocab_size:] = -torch.inf
            losses[rows] = _softmax_minus_onehot_(logits, targets[rows])
            if need_dx:
                torch.mm(logits, weight, out=dx[rows])
            if need_dw:
                _add_product_(dw, logits.T, x[rows], first=start == 0)
    if need_dx:
        dx.mul_(counted[:, None])
    return (losses * counted).sum() / count, count, dx, dw


@_op.register_fake
def _(  # type: ignore[no-untyped-def]
    x, weight, targets, vocab_size, ignore_index, chunk_bytes, need_dx, need_dw
):
    loss = x.new_empty((), dtype=_precise(x.dtype))
    count = x.new_empty((), dtype=torch.float32)
    dx = torch.empty_like(x) if need_dx else x.new_empty(0)
    return loss, count, dx, weight.new_empty(weight.shape if need_dw else 0, dtype=loss.dtype)


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
