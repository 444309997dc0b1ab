"""The operators, autograd function and checks that `layer_norm` and `rms_norm` share.

A plan cuts rows into pieces and programs.
"""

import functools
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels._common.launch import (
    architecture,
    check_dtype,
    check_launchable,
    launch_options,
    multiprocessors,
    on_device_of,
)
from kernels._common.op import register_op
from kernels._common.partials import sum_partials
from kernels._common.rows import as_rows, power_below
from kernels._norm.kernels import norm_bwd_kernel, norm_fwd_kernel

MAX_WIDTH = 65536
# Values of a row tile that one lane holds. The backward has up to five such tiles: two inputs, the
# weight, and two sums.
FWD_VALUES, FWD_THREADS = 64, 128
BWD_VALUES, BWD_THREADS = 32, 128
MAX_ROWS, MAX_THREADS = 64, 512
# Programs of the backward per multiprocessor: three, or as many as hold that many elements of x,
# which is what the registers allow.
BWD_PROGRAMS, BWD_ELEMENTS = 3, 9_500
REGISTERS = 65_536  # of a multiprocessor
# Shared memory of one program for the tiles, two at most, that are on their way: three programs fit
# the 99 KiB of the smallest targets.
BWD_FETCH_BYTES = 30 << 10


class Plan(NamedTuple):
    """The rows and threads of a tile, and the pieces into which a row is cut."""

    rows: int
    threads: int
    starts: tuple[int, ...]
    widths: tuple[int, ...]

    def options(self, width: int, centred: bool) -> dict[str, Any]:
        return {
            "C": width,
            "CENTRED": centred,
            "ROWS": self.rows,
            "STARTS": self.starts,
            "WIDTHS": self.widths,
        }


@functools.cache
def plan_rows(
    width: int, itemsize: int, values: int, threads: int, most_rows: int = MAX_ROWS
) -> Plan:
    """Plan tiles of rows of `width` elements of `itemsize` bytes, about `values` of them a lane."""
    while threads * values < width and threads < MAX_THREADS:
        threads *= 2
    rows = min(power_below(max(1, threads * values // width)), most_rows)
    lanes = max(32, threads // rows)  # that share a row
    widths = [lanes * 16 // itemsize] * (width // (lanes * 16 // itemsize))
    rest = width - sum(widths)
    idle = max(width // 20, 31)
    while rest:
        cover = triton.next_power_of_2(rest)
        if cover - rest > idle:
            cover //= 2
        widths.append(cover)
        rest -= min(cover, rest)
    starts = [sum(widths[:i]) for i in range(len(widths))]
    return Plan(rows, threads, tuple(starts), tuple(widths))


def _allocate_outputs(x, residual, weight, bias, eps, centred, dtype):
    total = x.new_empty((0,)) if residual is None else residual.new_empty(x.shape)
    n = x.numel() // x.shape[-1]
    stats = x.new_empty((2 if centred else 1, n), dtype=torch.float32)
    return x.new_empty(x.shape, dtype=dtype), total, stats


@register_op("norm_fwd", _allocate_outputs)
def norm_fwd(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float,
    centred: bool, dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return y, x + residual (empty without one), and 1/std and mean of each row (1 or 2, N)."""
    y, total, stats = _allocate_outputs(x, residual, weight, bias, eps, centred, dtype)
    n, width = stats.shape[1], x.shape[-1]
    if n == 0:
        return y, total, stats
    x = as_rows(x)
    itemsize = max(x.element_size(), y.element_size())
    if residual is not None:
        residual = as_rows(residual)
        itemsize = max(itemsize, residual.element_size())
    plan = plan_rows(width, itemsize, FWD_VALUES, FWD_THREADS)
    with on_device_of(x):
        norm_fwd_kernel[(triton.cdiv(n, plan.rows),)](
            x, residual, weight, bias, y, None if residual is None else total, stats,
            x.stride(0), 0 if residual is None else residual.stride(0), n, eps,
            **plan.options(width, centred), **launch_options(plan.threads, x),
        )  # fmt: skip
    return y, total, stats


def _allocate_gradients(dy, dtotal, x, weight, stats, centred, dtype, need_dweight, need_dbias):
    dx = x.new_empty(x.shape)
    dbranch = x.new_empty((0,) if dtype == x.dtype else x.shape, dtype=dtype)
    dweight, dbias = (
        weight.new_empty(weight.shape if need else (0,)) for need in (need_dweight, need_dbias)
    )
    return dx, dbranch, dweight, dbias


@register_op("norm_bwd", _allocate_gradients)
def norm_bwd(
    dy: Tensor, dtotal: Tensor | None, x: Tensor, weight: Tensor, stats: Tensor, centred: bool,
    dtype: torch.dtype, need_dweight: bool, need_dbias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return dx in the dtype of x, dx in `dtype` if that is another, dweight and dbias."""
    dx, dbranch, dweight, dbias = _allocate_gradients(
        dy, dtotal, x, weight, stats, centred, dtype, need_dweight, need_dbias
    )
    n, width = stats.shape[1], x.shape[-1]
    if n == 0:
        return dx, dbranch, dweight.zero_(), dbias.zero_()
    x, dy = as_rows(x), as_rows(dy)
    itemsize = max(x.element_size(), dy.element_size())
    staged = x.element_size() + dy.element_size()
    if dtotal is not None:
        dtotal = as_rows(dtotal)
        staged += dtotal.element_size()
    most_rows = power_below(max(1, BWD_FETCH_BYTES // (width * staged)))
    plan = plan_rows(width, itemsize, BWD_VALUES, BWD_THREADS, min(most_rows, MAX_ROWS))
    resident = max(1, min(BWD_PROGRAMS, BWD_ELEMENTS // (plan.rows * width)))
    programs = min(triton.cdiv(n, plan.rows), resident * multiprocessors(x))
    sums = [grad for grad, need in ((dweight, need_dweight), (dbias, need_dbias)) if need]
    partials = stats.new_empty((len(sums), programs, width))
    options = launch_options(plan.threads, x)
    if not centred and architecture(x.device) == "sm_120":
        # Each may fill its share of the registers: ptxas, which does not know how many run at a
        # time, would spill some to make room for one more.
        options["maxnreg"] = min(255, REGISTERS // (resident * plan.threads) // 8 * 8)
    with on_device_of(x):
        norm_bwd_kernel[(programs,)](
            dy, dtotal, x, weight, stats, dx, None if dtype == x.dtype else dbranch,
            partials if need_dweight else None, partials if need_dbias else None,
            dy.stride(0), 0 if dtotal is None else dtotal.stride(0), x.stride(0), n,
            STAGES=1 + min(2, BWD_FETCH_BYTES // (plan.rows * width * staged)),
            **plan.options(width, centred), **options,
        )  # fmt: skip
        if sums:
            sum_partials(partials, *sums)
    return dx, dbranch, dweight, dbias


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, weight, bias, eps, centred, dtype):
        y, total, stats = norm_fwd(x, residual, weight, bias, eps, centred, dtype)
        ctx.save_for_backward(x if residual is None else total, weight, stats)
        ctx.centred, ctx.dtype = centred, x.dtype
        if not torch.compiler.is_compiling():  # a compiler drops unused gradients by itself
            ctx.set_materialize_grads(False)
        return y if residual is None else (y, total)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dtotal=None):
        if dy is None:
            dx = None if dtotal is None else dtotal.to(ctx.dtype)
            return dx, dtotal, None, None, None, None, None
        need_dweight, need_dbias = ctx.needs_input_grad[2:4]
        dx, dbranch, dweight, dbias = norm_bwd(
            dy, dtotal, *ctx.saved_tensors, ctx.centred, ctx.dtype, need_dweight, need_dbias
        )
        return (
            dx if ctx.dtype == dx.dtype else dbranch,
            dx if ctx.needs_input_grad[1] else None,
            dweight if need_dweight else None,
            dbias if need_dbias else None,
            None, None, None,
        )  # fmt: skip


def norm(
    op: str, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None,
    eps: float, centred: bool, dtype: torch.dtype | None,
) -> Any:  # fmt: skip
    """Check the arguments of `op`; return y, or (y, x + residual) if there is a residual."""
    dtype = x.dtype if dtype is None else dtype
    vectors = [weight] if bias is None else [weight, bias]
    streams = [x] if residual is None else [x, residual]
    check_launchable(op, *streams, *vectors, one_dtype=False)
    check_dtype(op, dtype)
    if x.dim() == 0 or not 1 <= x.shape[-1] <= MAX_WIDTH:
        raise ValueError(
            f"{op}: x must be (..., C) with C in 1..{MAX_WIDTH}, got shape {tuple(x.shape)}"
        )
    for name, vector in zip(("weight", "bias"), vectors, strict=False):
        if vector.shape != x.shape[-1:] or vector.dtype != weight.dtype:
            raise ValueError(
                f"{op}: {name} must be ({x.shape[-1]},) {weight.dtype} for x of shape "
                f"{tuple(x.shape)}, got {tuple(vector.shape)} {vector.dtype}"
            )
    if residual is not None and residual.shape != x.shape:
        raise ValueError(
            f"{op}: x and residual must have one shape, got {tuple(x.shape)} and "
            f"{tuple(residual.shape)}; expand the smaller one"
        )
    if not eps > 0:
        raise ValueError(f"{op}: eps must be positive, got {eps}")
    # The kernels know no stride for vectors: a slice of another is copied, it is small.
    weight = weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    return _Norm.apply(x, residual, weight, bias, eps, centred, dtype)
