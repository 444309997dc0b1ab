"""Cross-entropy of logits and integer targets: the loss, and its gradient in the same pass.

For each row x of logits over a vocabulary of V, with target t, smoothing e and z-loss weight z,
and with n rows that are not ignored:

    lse = log sum_v exp x_v                              p = exp(x - lse)
    loss = 1/n sum over rows of  lse - (1 - e) x_t - e mean_v x_v + z lse^2
    dx_v = dloss / n ((1 + 2 z lse) p_v - (1 - e) [v = t] - e / V)

With weights w of the rows, each term is multiplied by its w and n is their sum.

The gradient of a row depends on that row alone, so the forward computes it already, with dloss = 1,
and on request in place of the logits; the backward multiplies it by dloss, or does nothing if that
is 1.

How work is split: one program per row. A first pass over the row keeps in each lane the running
maximum of what that lane has seen, and the sum of exponentials relative to it: one exponential per
element and no communication until the row ends. A second pass, backwards over the row, reads it
again from the L2 cache and writes the gradient. Only as many rows run at a time as can keep their
logits in that cache, beginning with the last row, which a matrix product has written last.

Bytes moved between memory and the GPU, least possible and as done, for N rows of V logits in their
own size: N V read, and N V written with a gradient (plus N V read again from the cache).

Precision: everything is float32 except the logits and their gradient. In float16 the gradient is
kept n times larger until the backward, since 1/n of a probability would underflow before a loss
scaler could prevent it.

Sources: Milakov and Gimelshein, Online normalizer calculation for softmax (arXiv 1805.02867);
Szegedy et al., Rethinking the Inception architecture (arXiv 1512.00567): label smoothing;
Chowdhery et al., PaLM (arXiv 2204.02311): z-loss.
"""

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels._common.head import count_targets
from kernels._common.launch import check_launchable, launch_options, multiprocessors, on_device_of
from kernels._common.op import register_op
from kernels._common.rows import as_rows

LOG2E = tl.constexpr(1.4426950408889634)
# 16-byte loads that a lane has in flight, without and with smoothing: as many as let two programs
# of 512 threads share the registers of a multiprocessor. An H100 then works on 264 rows, of 100 KB
# at GPT-2's vocabulary, and has an L2 cache of 50 MB. Short rows take fewer threads.
LOADS, SMOOTHED_LOADS = 4, 2
THREADS, SHORT_THREADS, SHORT_ROW = 512, 128, 8192
SCALE_BLOCK, SCALE_PROGRAMS = 4096, 8  # programs per multiprocessor: few, to do nothing quickly


def cross_entropy_reference(
    logits: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    vocab_size: int | None = None,
    token_weights: Tensor | None = None,
    reduction: Literal["mean", "none"] = "mean",
) -> Tensor:
    """Cross-entropy in plain PyTorch, in float32 or wider: the specification."""
    x = logits[..., :vocab_size].to(torch.promote_types(logits.dtype, torch.float32))
    counted = targets != ignore_index
    lse = x.logsumexp(-1)
    x_target = x.gather(-1, targets.where(counted, 0)[..., None])[..., 0]
    loss = lse - (1 - label_smoothing) * x_target - label_smoothing * x.mean(-1) + z_loss * lse**2
    weights = counted.to(x.dtype) if token_weights is None else token_weights.where(counted, 0)
    loss = loss.where(counted, 0) * weights
    total = weights.sum()
    return loss if reduction == "none" else loss.sum() / total.where(total != 0, 1)


@triton.jit
def _block(start, LOADS: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr):
    """Columns from `start` on, as (loads, lanes, elements of a load)."""
    load = tl.arange(0, LOADS)[:, None, None]
    lane = tl.arange(0, LANES)[None, :, None]
    return start + (load * LANES + lane) * VECTOR + tl.arange(0, VECTOR)[None, None, :]


@triton.jit
def _load_block(row_ptr, cols, V, vocab_size, TAIL: tl.constexpr):
    if TAIL:
        x = tl.load(row_ptr + cols, mask=cols < V, other=float("-inf")).to(tl.float32)
        # What padding holds may be anything, NaN included.
        x = tl.where(cols < vocab_size, x, float("-inf"))
    else:
        x = tl.load(row_ptr + cols).to(tl.float32)
    return x


@triton.jit
def _see_block(
    top, total, plain, row_ptr, start, V, vocab_size, SMOOTHED: tl.constexpr,
    LOADS: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """Add a block to each lane's maximum, sum of exponentials relative to it, and plain sum."""
    cols = _block(start, LOADS, LANES, VECTOR)
    x = _load_block(row_ptr, cols, V, vocab_size, TAIL)
    new_top = tl.maximum(top, tl.max(tl.max(x, 2), 0))
    # A lane may have seen -inf only: keep -inf - -inf from making a NaN.
    shift = tl.where(new_top == float("-inf"), 0.0, new_top)
    p = tl.exp2((x - shift[None, :, None]) * LOG2E)
    total = total * tl.exp2((top - shift) * LOG2E) + tl.sum(tl.sum(p, 2), 0)
    if SMOOTHED:
        plain += tl.sum(tl.sum(tl.where(cols < vocab_size, x, 0.0), 2), 0)
    return new_top, total, plain


@triton.jit
def _write_gradient(
    row_ptr, drow_ptr, start, V, vocab_size, top, slope, spread,
    LOADS: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    cols = _block(start, LOADS, LANES, VECTOR)
    x = _load_block(row_ptr, cols, V, vocab_size, TAIL)
    dx = tl.exp2((x - top) * LOG2E) * slope - spread
    if TAIL:
        dx = tl.where(cols < vocab_size, dx, 0.0)
        tl.store(drow_ptr + cols, dx.to(drow_ptr.dtype.element_ty), mask=cols < V)
    else:
        tl.store(drow_ptr + cols, dx.to(drow_ptr.dtype.element_ty))


@triton.jit(do_not_specialize=["N", "vocab_size", "ignore_index"])
def _cross_entropy_kernel(
    logits_ptr, targets_ptr, weights_ptr, count_ptr, losses_ptr, dlogits_ptr,
    stride_logits, stride_dlogits, N, V, vocab_size, ignore_index, smoothing, z_loss,
    SMOOTHED: tl.constexpr, MEAN: tl.constexpr,
    LOADS: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Compute w/n of a row's loss, and the gradient of the mean (if MEAN) or of the sum."""
    row = (N - 1 - tl.program_id(0)).to(tl.int64)
    row_ptr = logits_ptr + row * stride_logits
    target = tl.load(targets_ptr + row)
    # Whole blocks need no mask. The tail takes smaller ones, and covers the padding.
    BLOCK: tl.constexpr = LOADS * LANES * VECTOR
    TAIL_BLOCK: tl.constexpr = LANES * VECTOR
    whole = vocab_size // BLOCK * BLOCK
    if target == ignore_index:
        tl.store(losses_ptr + row, 0.0)
        if dlogits_ptr is not None:
            for start in tl.range(0, V, TAIL_BLOCK):
                cols = _block(start, 1, LANES, VECTOR)
                zeros = tl.zeros((1, LANES, VECTOR), dlogits_ptr.dtype.element_ty)
                tl.store(dlogits_ptr + row * stride_dlogits + cols, zeros, mask=cols < V)
    else:
        inside = (target >= 0) & (target < vocab_size)
        tl.device_assert(inside, "cross_entropy: target outside the vocabulary")
        # Unchecked, a target outside makes the loss NaN. Read before the gradient overwrites it.
        x_target = tl.load(row_ptr + target, mask=inside, other=float("nan")).to(tl.float32)
        top = tl.full((LANES,), float("-inf"), tl.float32)
        total = tl.zeros((LANES,), tl.float32)
        plain = tl.zeros((LANES,), tl.float32)
        for start in tl.range(0, whole, BLOCK):
            top, total, plain = _see_block(
                top, total, plain, row_ptr, start, V, vocab_size, SMOOTHED,
                LOADS, LANES, VECTOR, False,
            )  # fmt: skip
        for start in tl.range(whole, V, TAIL_BLOCK):
            top, total, plain = _see_block(
                top, total, plain, row_ptr, start, V, vocab_size, SMOOTHED, 1, LANES, VECTOR, True
            )
        row_top = tl.max(top, 0)
        row_total = tl.sum(total * tl.exp2((top - row_top) * LOG2E), 0)
        log_total = tl.log(row_total)
        lse = row_top + log_total
        # Differences to the maximum lose nothing, however large the logits are.
        loss = log_total + (1.0 - smoothing) * (row_top - x_target) + z_loss * lse * lse
        if SMOOTHED:
            loss += smoothing * (row_top - tl.sum(plain, 0) / vocab_size)
        weight = 1.0
        if weights_ptr is not None:
            weight = tl.load(weights_ptr + row)
        share = weight / tl.load(count_ptr)
        tl.store(losses_ptr + row, loss * share)
        if dlogits_ptr is not None:
            drow_ptr = dlogits_ptr + row * stride_dlogits
            scale = share if MEAN else weight
            slope = tl.where(inside, (1.0 + 2.0 * z_loss * lse) / row_total, float("nan")) * scale
            spread = smoothing / vocab_size * scale
            hit = (1.0 - smoothing) * scale
            steps = tl.cdiv(V - whole, TAIL_BLOCK)
            for step in tl.range(0, steps):
                _write_gradient(
                    row_ptr, drow_ptr, whole + (steps - 1 - step) * TAIL_BLOCK, V, vocab_size,
                    row_top, slope, spread, 1, LANES, VECTOR, True,
                )  # fmt: skip
            for step in tl.range(0, whole // BLOCK):
                _write_gradient(
                    row_ptr, drow_ptr, whole - (step + 1) * BLOCK, V, vocab_size,
                    row_top, slope, spread, LOADS, LANES, VECTOR, False,
                )  # fmt: skip
            # The one element that differs is cheaper to write again than to look for.
            dx_target = tl.exp2((x_target - row_top) * LOG2E) * slope - spread - hit
            tl.debug_barrier()
            tl.store(drow_ptr + target, dx_target.to(drow_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["N"])
def _scale_kernel(x_ptr, factor_ptr, stride_x, N, V, PER_ROW: tl.constexpr, BLOCK: tl.constexpr):
    factor = tl.load(factor_ptr)
    if PER_ROW or factor != 1.0:
        for row in tl.range(tl.program_id(0), N, tl.num_programs(0)):
            row_ptr = x_ptr + tl.cast(row, tl.int64) * stride_x
            if PER_ROW:
                factor = tl.load(factor_ptr + row)
            for start in tl.range(0, V, BLOCK):
                cols = start + tl.arange(0, BLOCK)
                x = tl.load(row_ptr + cols, mask=cols < V, other=0.0).to(tl.float32)
                tl.store(row_ptr + cols, (x * factor).to(x_ptr.dtype.element_ty), mask=cols < V)


def launch_cross_entropy(
    logits: Tensor, targets: Tensor, weights: Tensor | None, count: Tensor, losses: Tensor,
    dlogits: Tensor | None, vocab_size: int, ignore_index: int, label_smoothing: float,
    z_loss: float, mean: bool,
) -> None:  # fmt: skip
    """Fill losses (N,) and dlogits (N, V) of N > 0 rows; dlogits may be the logits themselves.

    Each loss is multiplied by its weight (1 without weights) and divided by count; dlogits is the
    gradient of their sum, or without `mean` of count times that.
    """
    n, width = logits.shape
    threads = THREADS if width > SHORT_ROW else SHORT_THREADS
    smoothed = label_smoothing > 0
    with on_device_of(logits):
        _cross_entropy_kernel[(n,)](
            logits, targets, weights, count, losses, dlogits,
            logits.stride(0), 0 if dlogits is None else dlogits.stride(0),
            n, width, vocab_size, ignore_index, label_smoothing, z_loss,
            SMOOTHED=smoothed, MEAN=mean, LOADS=SMOOTHED_LOADS if smoothed else LOADS,
            LANES=threads, VECTOR=16 // logits.element_size(),
            **launch_options(threads, logits),
        )  # fmt: skip


def _fwd(
    logits: Tensor, targets: Tensor, weights: Tensor | None, dlogits: Tensor | None,
    vocab_size: int, ignore_index: int, label_smoothing: float, z_loss: float, reduction: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the loss and what it was divided by, and fill dlogits if there is one."""
    count = divisor(targets, weights, ignore_index, vocab_size, reduction)
    losses = torch.empty(targets.shape, dtype=torch.float32, device=logits.device)
    if len(logits):
        launch_cross_entropy(
            as_rows(logits), targets.contiguous(), weights, count, losses, dlogits,
            vocab_size, ignore_index, label_smoothing, z_loss, _of_mean(logits.dtype),
        )  # fmt: skip
    return losses if reduction == "none" else losses.sum(), count


def _of_mean(dtype: torch.dtype) -> bool:
    """True if the forward stores the gradient of the mean; in float16 it is that of the sum."""
    return dtype != torch.float16


def _in_place_fake(logits, *others):
    loss_shape = logits.shape[:1] if others[-1] == "none" else ()
    return tuple(logits.new_empty(shape, dtype=torch.float32) for shape in (loss_shape, ()))


def _out_of_place_fake(logits, *others):
    *others, need_grad = others
    return *_in_place_fake(logits, *others), logits.new_empty(logits.shape if need_grad else (0,))


@register_op("cross_entropy_fwd", _out_of_place_fake)
def _out_of_place(
    logits: Tensor, targets: Tensor, weights: Tensor | None, vocab_size: int, ignore_index: int,
    label_smoothing: float, z_loss: float, reduction: str, need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dlogits = logits.new_empty(logits.shape if need_grad else (0,))
    loss, count = _fwd(
        logits, targets, weights, dlogits if need_grad else None,
        vocab_size, ignore_index, label_smoothing, z_loss, reduction,
    )  # fmt: skip
    return loss, count, dlogits


@register_op("cross_entropy_fwd_", _in_place_fake, mutates=("logits",))
def _in_place(
    logits: Tensor, targets: Tensor, weights: Tensor | None, vocab_size: int, ignore_index: int,
    label_smoothing: float, z_loss: float, reduction: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _fwd(
        logits, targets, weights, logits,
        vocab_size, ignore_index, label_smoothing, z_loss, reduction,
    )  # fmt: skip


@register_op("scale_", lambda x, factor: None, mutates=("x",))
def _scale_(x: Tensor, factor: Tensor) -> None:
    """Multiply x (N, C) by a scalar on the device, and touch nothing if it is 1, or by (N,)."""
    n, width = x.shape
    if x.numel() > 0:
        with on_device_of(x):
            _scale_kernel[(min(n, SCALE_PROGRAMS * multiprocessors(x)),)](
                x,
                factor,
                x.stride(0),
                n,
                width,
                PER_ROW=factor.dim() > 0,
                BLOCK=SCALE_BLOCK,
                enable_fp_fusion=True,
            )


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, targets, weights, settings, inplace, with_grad):
        need_grad = with_grad and ctx.needs_input_grad[0]
        if inplace and need_grad:
            dlogits = logits.detach()
            loss, count = _in_place(dlogits, targets, weights, *settings)
            # Autograd refuses a backward of anything else that saved the logits.
            torch.autograd.graph.increment_version(dlogits)
        else:
            loss, count, dlogits = _out_of_place(logits, targets, weights, *settings, need_grad)
        ctx.save_for_backward(dlogits, count)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, dloss):
        dlogits, count = ctx.saved_tensors
        _scale_(dlogits, dloss.contiguous() if _of_mean(dlogits.dtype) else dloss / count)
        # The buffer now holds the scaled gradient: a second backward must be refused.
        torch.autograd.graph.increment_version(dlogits)
        return dlogits, None, None, None, None, None


def divisor(
    targets: Tensor, weights: Tensor | None, ignore_index: int, vocab_size: int, reduction: str
) -> Tensor:
    """What the sum of the losses is divided by, or each of them: a float32 scalar on the device."""
    count = count_targets(targets, ignore_index, vocab_size)
    if reduction == "none":
        return torch.ones_like(count)
    if weights is not None:
        count = weights.where(targets != ignore_index, 0).sum()
        count = count.where(count != 0, 1)
    return count


def check_options(
    op: str, vocab_size: int | None, width: int, label_smoothing: float, z_loss: float,
    targets: Tensor, token_weights: Tensor | None, reduction: str,
) -> int:  # fmt: skip
    """Check the options of a loss, and return the number of real classes, `width` by default."""
    if reduction not in ("mean", "none"):
        raise ValueError(f"{op}: reduction must be 'mean' or 'none', got {reduction!r}")
    if token_weights is not None and (
        (token_weights.shape, token_weights.dtype, token_weights.device)
        != (targets.shape, torch.float32, targets.device)
    ):
        raise ValueError(
            f"{op}: token_weights must be float32 {tuple(targets.shape)} on {targets.device}, got "
            f"{token_weights.dtype} {tuple(token_weights.shape)} on {token_weights.device}"
        )
    if token_weights is not None and token_weights.requires_grad:
        raise ValueError(
            f"{op}: no gradient flows to token_weights: detach() them, or multiply the losses that "
            "reduction='none' gives"
        )
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"{op}: label_smoothing must be in [0, 1), got {label_smoothing}")
    if not z_loss >= 0:
        raise ValueError(f"{op}: z_loss must be at least 0, got {z_loss}")
    if vocab_size is None:
        vocab_size = width
    if not 1 <= vocab_size <= width:
        raise ValueError(
            f"{op}: vocab_size must be in 1..{width}, the number of logits of a row, got "
            f"{vocab_size}"
        )
    return vocab_size


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    vocab_size: int | None = None,
    token_weights: Tensor | None = None,
    reduction: Literal["mean", "none"] = "mean",
    inplace: bool = False,
) -> Tensor:
    """Cross-entropy of logits and integer targets, in nats.

    Args:
        logits: (..., V), float16, bfloat16 or float32. Read at full speed if rows begin at
            multiples of 16 bytes: pad the vocabulary (50257 to 50304) and say `vocab_size`.
        targets: (...), int64, in [0, vocab_size) or ignore_index. Another target is an error on a
            CPU and, with TRITON_DEBUG=1, on a GPU; else it makes the loss NaN.
        ignore_index: rows with this target count neither in the loss nor in its mean.
        label_smoothing: the share of the target's probability that all classes get alike.
        z_loss: weight of the mean square of the log-sum-exp, which keeps logits from drifting.
        vocab_size: the number of real classes, V by default. Columns from there on are padding:
            they are ignored, and their gradient is exactly zero.
        token_weights: (...), float32: each loss is multiplied by its own, and the mean is weighted.
            A sum of 0 gives 0, as if every target were ignored.
        reduction: "mean", or "none" for the loss of every target, (...), 0 where it is ignored.
        inplace: write the gradient over the logits, so that nothing else of their size is
            allocated. Ignored under `torch.compile`, which decides this itself.

    Returns:
        The loss in float32, a scalar or (...); 0 with zero gradients if every target is ignored. A
        second backward through the same graph raises RuntimeError; under `torch.compile`, which
        takes nothing in place, it gives the same bits.

    Raises:
        ValueError: a shape, dtype, device or option that the kernels cannot take.

    Source:
        Milakov and Gimelshein, Online normalizer calculation for softmax, arXiv 1805.02867.
    """
    check_launchable("cross_entropy", logits)
    if logits.dim() == 0 or targets.shape != logits.shape[:-1] or targets.dtype != torch.int64:
        raise ValueError(
            "cross_entropy: expected logits (..., V) and int64 targets (...), got "
            f"{tuple(logits.shape)} and {targets.dtype} {tuple(targets.shape)}"
        )
    vocab_size = check_options(
        "cross_entropy", vocab_size, logits.shape[-1], label_smoothing, z_loss,
        targets, token_weights, reduction,
    )  # fmt: skip
    rows = logits.reshape(-1, logits.shape[-1])
    inplace = inplace and not torch.compiler.is_compiling()
    if inplace and (rows.data_ptr() != logits.data_ptr() or rows.stride(1) != 1):
        raise ValueError(
            "cross_entropy: inplace needs rows whose elements are neighbours, with one stride from "
            f"row to row, got strides {logits.stride()}; call logits.contiguous()"
        )
    settings = (vocab_size, ignore_index, label_smoothing, z_loss, reduction)
    weights = None if token_weights is None else token_weights.reshape(-1).contiguous()
    loss: Tensor = _CrossEntropy.apply(
        rows, targets.reshape(-1), weights, settings, inplace, torch.is_grad_enabled()
    )
    return loss if reduction == "mean" else loss.view(targets.shape)
