"""Output head and cross-entropy in one operator: the logits of the whole batch never exist.

For hidden states x (N, C), head weight W (V, C) and targets t (N,), n of which count:

    X = x W^T                                            P = softmax of the rows of X
    loss = 1/n sum over rows of  logsumexp(X_i) - X_i[t_i]
    dX = P - onehot(t), zero in ignored rows             dx = dloss/n dX W      dW = dloss/n dX^T x

(with smoothing, z-loss and weights as in `kernels.cross_entropy`). The gradient depends on the
logits alone, so it is formed where they are: rows are taken in chunks whose logits fit a byte
budget, the kernel of `kernels.cross_entropy` turns a chunk into its loss and dX in place, and two
products finish it.
That is three products of N x C x V in all, the least there is, and one in evaluation, where no
gradient is computed.

With reduction="none" the rows' gradients are known in the backward alone, which makes the logits
again, chunk by chunk: four products in all.

Memory beyond the gradients: one chunk of logits. Its rows begin at multiples of 128 bytes whatever
V is, so that a vocabulary of 50257 is read as fast as a padded one.

Precision: products take x's dtype and sum in float32. dW is added up over chunks in float32, in
place. dX is kept free of 1/n, which would push float16 into underflow; the scalar dloss/n meets dx
and dW in the backward, in place.

Sources: Hsu et al., Liger kernel (arXiv 2410.10989): gradients formed in the forward, by chunks;
Wijmans et al., Cut your losses in large-vocabulary language models (arXiv 2411.09009): the problem.
"""

from typing import Any, Literal

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels._common.head import check_head, chunk_rows, scaled_gradients, scaled_sums
from kernels._common.launch import check_dtype, check_launchable
from kernels._common.op import register_op
from kernels.cross_entropy import (
    check_options,
    cross_entropy_reference,
    divisor,
    launch_cross_entropy,
)

CHUNK_BYTES = 400 * 2**20
LINE = 128  # bytes


def linear_cross_entropy_reference(
    x: Tensor, weight: Tensor, targets: Tensor, **options: Any
) -> Tensor:
    """`cross_entropy_reference` of the logits x W^T, with its options: the specification."""
    return cross_entropy_reference(x @ weight.T, targets, **options)


def _allocate_gradients(
    x: Tensor, weight: Tensor, need_dx: bool, need_dw: bool
) -> tuple[Tensor, Tensor]:
    dx = x.new_empty(x.shape if need_dx else (0,))
    return dx, x.new_empty(weight.shape if need_dw else (0,), dtype=torch.float32)


def _fake(x, weight, *others):
    *_, reduction, _, need_dx, need_dw = others
    loss_shape = x.shape[:1] if reduction == "none" else ()
    loss, count = (x.new_empty(shape, dtype=torch.float32) for shape in (loss_shape, ()))
    return loss, count, *_allocate_gradients(x, weight, need_dx, need_dw)


@register_op("linear_cross_entropy_fwd", _fake)
def _fwd(
    x: Tensor, weight: Tensor, targets: Tensor, token_weights: Tensor | None, vocab_size: int,
    ignore_index: int, label_smoothing: float, z_loss: float, reduction: str, chunk_bytes: int,
    need_dx: bool, need_dw: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the loss, what it was divided by, and the gradients of the sum of all rows' losses."""
    n, n_columns = len(x), len(weight)
    targets = targets.contiguous()
    count = divisor(targets, token_weights, ignore_index, vocab_size, reduction)
    losses = torch.empty(n, dtype=torch.float32, device=x.device)
    dx, dw = _allocate_gradients(x, weight, need_dx, need_dw)
    if n == 0:
        return losses if reduction == "none" else losses.sum(), count, dx, dw.zero_()
    row = triton.cdiv(n_columns * x.element_size(), LINE) * LINE // x.element_size()
    chunk = chunk_rows(n, row * x.element_size(), chunk_bytes)
    buffer = x.new_empty((chunk, row))
    # Autocast would cast dW, the one operand that is meant to be float32.
    with torch.autocast(x.device.type, enabled=False):
        for start in range(0, n, chunk):
            rows = slice(start, min(start + chunk, n))
            whole = buffer[: rows.stop - start]
            logits = torch.mm(x[rows], weight.T, out=whole[:, :n_columns])
            launch_cross_entropy(
                whole, targets[rows], None if token_weights is None else token_weights[rows],
                count, losses[rows], whole if need_dx or need_dw else None,
                vocab_size, ignore_index, label_smoothing, z_loss, mean=False,
            )  # fmt: skip
            if need_dx:
                torch.mm(logits, weight, out=dx[rows])
            if need_dw:
                _add_product_(dw, logits.T, x[rows], first=start == 0)
    return losses if reduction == "none" else losses.sum(), count, dx, dw


def _add_product_(total: Tensor, a: Tensor, b: Tensor, *, first: bool) -> None:
    """total (float32) += a @ b, summed in float32 throughout; the first product overwrites."""
    if a.dtype != torch.float32 and not a.is_cuda:
        a, b = a.float(), b.float()  # what `out_dtype` does, which CPUs lack
    if a.dtype == torch.float32:
        torch.addmm(total, a, b, beta=0 if first else 1, out=total)
    elif first:
        torch.mm(a, b, out_dtype=torch.float32, out=total)
    else:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, targets, token_weights, dtype, settings, with_grad):
        ctx.dtypes = x.dtype, weight.dtype
        needs = [with_grad and need for need in ctx.needs_input_grad[:2]]
        loss, *saved = _fwd(
            x.to(dtype), weight.to(dtype), targets, token_weights, *settings, *needs
        )
        ctx.save_for_backward(*saved)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, dloss):
        return *scaled_gradients(ctx, dloss), *[None] * 5


class _PerToken(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, targets, token_weights, dtype, settings, _):
        ctx.dtypes = x.dtype, weight.dtype
        ctx.dtype, ctx.settings = dtype, settings
        ctx.save_for_backward(x, weight, targets, token_weights)
        inputs = x.to(dtype), weight.to(dtype), targets, token_weights
        return _fwd(*inputs, *settings, False, False)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx, dloss):
        x, weight, targets, token_weights = ctx.saved_tensors
        weights = dloss if token_weights is None else dloss * token_weights
        # At most 1 in the 16-bit products, as for the mean.
        largest = weights.abs().max() if len(weights) else dloss.new_ones(())
        largest = largest.where(largest != 0, 1)
        inputs = x.to(ctx.dtype), weight.to(ctx.dtype), targets, weights / largest
        sums = _fwd(*inputs, *ctx.settings, *ctx.needs_input_grad[:2])[2:]
        return *scaled_sums(ctx, sums, largest), *[None] * 5


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    vocab_size: int | None = None,
    token_weights: Tensor | None = None,
    reduction: Literal["mean", "none"] = "mean",
    chunk_bytes: int = CHUNK_BYTES,
) -> Tensor:
    """Cross-entropy of the output head `x @ weight.T`, in nats.

    Args:
        x: hidden states (N, C), float16, bfloat16 or float32.
        weight: head weight (V, C), of x's dtype unless autocast is on, which casts both.
        targets: (N,), int64, in [0, vocab_size) or ignore_index. Another target is an error on a
            CPU and, with TRITON_DEBUG=1, on a GPU; else it makes the loss NaN.
        ignore_index, label_smoothing, z_loss: as in `cross_entropy`.
        vocab_size: the number of real classes, V by default. Rows of `weight` from there on are
            padding and take no part.
        token_weights: (N,), float32: each loss is multiplied by its own, and the mean is weighted.
        reduction: "mean", or "none" for the loss of every row, whose backward makes the logits
            again.
        chunk_bytes: upper bound for the logits that exist at a time, in bytes; never less than a
            row. The default is 4096 rows at GPT-2's vocabulary in 16 bits: larger chunks read and
            write dW less often, smaller ones save memory.

    Returns:
        The loss in float32, a scalar or (N,); 0 with zero gradients if every target is ignored.
        Nothing is computed for what needs no gradient. A second backward through the same graph
        raises RuntimeError for the mean; under `torch.compile`, which takes nothing in place, it
        gives the same bits.

    Raises:
        ValueError: a shape, dtype, device or option that cannot be taken.

    Source:
        Hsu et al., Liger kernel: efficient Triton kernels for LLM training, arXiv 2410.10989.
    """
    op = "linear_cross_entropy"
    check_head(op, x, weight, targets)
    dtype = x.dtype
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        check_dtype(op, dtype)
    check_launchable(op, x, weight, one_dtype=not torch.is_autocast_enabled(x.device.type))
    vocab_size = check_options(
        op, vocab_size, len(weight), label_smoothing, z_loss, targets, token_weights, reduction
    )
    if chunk_bytes < 1:
        raise ValueError(f"{op}: chunk_bytes must be at least 1, got {chunk_bytes}")
    settings = (vocab_size, ignore_index, label_smoothing, z_loss, reduction, chunk_bytes)
    weights = None if token_weights is None else token_weights.contiguous()
    loss: Tensor = (_Mean if reduction == "mean" else _PerToken).apply(
        x, weight, targets, weights, dtype, settings, torch.is_grad_enabled()
    )
    return loss
