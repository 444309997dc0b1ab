"""GELU in its tanh form, with the bias of the linear layer before it fused in.

For each element, with z = x + bias (z = x without one), k = sqrt(2 / pi), c = 0.044715:

    s = sigmoid(2 k (z + c z^3))              y = 0.5 z (1 + tanh(k (z + c z^3))) = z s

    dx = dy * (s + z s (1 - s) 2 k (1 + 3 c z^2))          dbias = sum over rows of dx

The sigmoid form has the same value, one exponential, and no cancellation where y is small. Only x
is saved; the backward computes s again.

Bytes moved, least possible and as done, for n elements in the tensors' own size: forward 2 n (read
x, write y), backward 3 n (read dy and x, write dx). With a bias of F values, each of the persistent
programs of a column block reads its part of the bias once, and writes its part of dbias in float32.

How work is split: without a bias, elements are one long row; else programs own a block of columns
and walk over rows, so that bias and its gradient stay in registers. All arithmetic is float32.

Sources: Hendrycks and Gimpel, Gaussian error linear units (arXiv 1606.08415); Radford et al.,
Language models are unsupervised multitask learners (2019), whose weights use the tanh form.
"""

import math

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels._common.launch import check_launchable, launch_options, multiprocessors, on_device_of
from kernels._common.op import register_op
from kernels._common.partials import sum_partials
from kernels._common.reciprocal import LOG2E, reciprocal
from kernels._common.rows import THREADS, as_few_rows, as_rows, element_tile

PROGRAMS = 6  # per multiprocessor, when they walk over rows
FWD_VALUES, BWD_VALUES = 32, 16  # elements per lane of each tensor
CUBIC = tl.constexpr(0.044715)
TWO_K = tl.constexpr(2 * math.sqrt(2 / math.pi))


def gelu_tanh_reference(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """GELU (tanh form) of x + bias in plain PyTorch, in float32 or wider: the specification."""
    z = x.to(torch.promote_types(x.dtype, torch.float32))
    return F.gelu(z if bias is None else z + bias, approximate="tanh").to(x.dtype)


@triton.jit
def _tile(N, C, tile, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Rows, columns and existence of the elements of a tile in this program's column block."""
    rows = tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    cols = tl.program_id(0).to(tl.int64) * COLS + tl.arange(0, COLS)[None, :]
    return rows, cols, (rows < N) & (cols < C)


@triton.jit
def _exponent(z):
    """Compute the base-2 logarithm of exp(-2 k (z + c z^3))."""
    return z * (z * z * (-CUBIC * TWO_K * LOG2E) - TWO_K * LOG2E)


@triton.jit(do_not_specialize=["N"])
def _gelu_fwd_kernel(
    x_ptr, bias_ptr, y_ptr, stride_x, N, C, ROWS: tl.constexpr, COLS: tl.constexpr
):  # fmt: skip
    if bias_ptr is not None:
        _, cols, _ = _tile(N, C, 0, ROWS, COLS)
        bias = tl.load(bias_ptr + cols, cols < C, 0.0).to(tl.float32)
    for tile in tl.range(tl.program_id(1), tl.cdiv(N, ROWS), tl.num_programs(1)):
        rows, cols, exists = _tile(N, C, tile, ROWS, COLS)
        z = tl.load(x_ptr + rows * stride_x + cols, exists, 0.0).to(tl.float32)
        if bias_ptr is not None:
            z += bias
        y = z * reciprocal(1 + tl.exp2(_exponent(z)), y_ptr.dtype.element_ty)
        tl.store(y_ptr + rows * C + cols, y.to(y_ptr.dtype.element_ty), exists)


@triton.jit(do_not_specialize=["N"])
def _gelu_bwd_kernel(
    dy_ptr, x_ptr, bias_ptr, dx_ptr, dbias_ptr, stride_dy, stride_x, N, C,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Compute dx, and this program's sums over rows for dbias if that is wanted."""
    if bias_ptr is not None:
        _, cols, _ = _tile(N, C, 0, ROWS, COLS)
        bias = tl.load(bias_ptr + cols, cols < C, 0.0).to(tl.float32)
    dbias = tl.zeros((ROWS, COLS), tl.float32)
    for tile in tl.range(tl.program_id(1), tl.cdiv(N, ROWS), tl.num_programs(1)):
        rows, cols, exists = _tile(N, C, tile, ROWS, COLS)
        z = tl.load(x_ptr + rows * stride_x + cols, exists, 0.0).to(tl.float32)
        dy = tl.load(dy_ptr + rows * stride_dy + cols, exists, 0.0).to(tl.float32)
        if bias_ptr is not None:
            z += bias
        # 1 - s as e s, which cancels nothing; where e would overflow, s is zero.
        power = _exponent(z)
        e = tl.exp2(tl.minimum(power, 115.0))
        s = tl.where(power > 115.0, 0.0, reciprocal(1 + e, dx_ptr.dtype.element_ty))
        dx = dy * (s + z * (e * s) * s * (z * z * (3 * CUBIC * TWO_K) + TWO_K))
        if dbias_ptr is not None:
            dbias += dx
        tl.store(dx_ptr + rows * C + cols, dx.to(dx_ptr.dtype.element_ty), exists)
    if dbias_ptr is not None:
        cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
        own = tl.program_id(1).to(tl.int64) * C
        tl.store(dbias_ptr + own + cols, tl.sum(dbias, 0), cols < C)


def _grid(rows: Tensor, tile_rows: int, tile_cols: int) -> tuple[int, int]:
    """The number of column blocks, and of the programs that share the rows of each."""
    n, width = rows.shape
    blocks = triton.cdiv(width, tile_cols)
    return blocks, min(
        triton.cdiv(n, tile_rows), max(1, PROGRAMS * multiprocessors(rows) // blocks)
    )


@register_op("gelu_tanh_fwd", lambda x, bias: x.new_empty(x.shape))
def _fwd(x: Tensor, bias: Tensor | None) -> Tensor:
    y = x.new_empty(x.shape)
    if x.numel() == 0:
        return y
    rows = as_rows(x) if bias is not None else as_few_rows(x)[0]
    n, width = rows.shape
    tile = element_tile(rows, FWD_VALUES)
    with on_device_of(x):
        _gelu_fwd_kernel[_grid(rows, *tile)](
            rows, bias, y, rows.stride(0), n, width,
            ROWS=tile[0], COLS=tile[1], **launch_options(THREADS, x),
        )  # fmt: skip
    return y


def _allocate_gradients(dy, x, bias, need_dbias):
    return x.new_empty(x.shape), x.new_empty((0,)) if bias is None else bias.new_empty(bias.shape)


@register_op("gelu_tanh_bwd", _allocate_gradients)
def _bwd(dy: Tensor, x: Tensor, bias: Tensor | None, need_dbias: bool) -> tuple[Tensor, Tensor]:
    dx, dbias = _allocate_gradients(dy, x, bias, need_dbias)
    if x.numel() == 0:
        return dx, dbias.zero_()
    dy, x = (as_rows(dy), as_rows(x)) if bias is not None else as_few_rows(dy, x)
    n, width = x.shape
    tile = element_tile(x, BWD_VALUES)
    grid = _grid(x, *tile)
    partials = None
    if need_dbias:
        partials = torch.empty((1, grid[1], width), dtype=torch.float32, device=x.device)
    with on_device_of(x):
        _gelu_bwd_kernel[grid](
            dy, x, bias, dx, partials, dy.stride(0), x.stride(0), n, width,
            ROWS=tile[0], COLS=tile[1], **launch_options(THREADS, x),
        )  # fmt: skip
        if partials is not None:
            sum_partials(partials, dbias)
    return dx, dbias


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bias):
        ctx.save_for_backward(x, bias)
        return _fwd(x, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        need_dbias = ctx.needs_input_grad[1]
        dx, dbias = _bwd(dy, *ctx.saved_tensors, need_dbias)
        return dx, dbias if need_dbias else None


def gelu_tanh(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """GELU of x + bias, by the tanh formula that GPT-2 was trained with.

    Args:
        x: (..., F), float16, bfloat16 or float32: with a bias, the product of a linear layer that
            was given none. Any strides; copied unless one stride leads from row to row and the
            elements of a row are neighbours.
        bias: (F,), of any of these dtypes, or None.

    Returns:
        y: x's shape and dtype, contiguous. The backward gives dx, and dbias summed in float32
        unless the bias is frozen; it gives the same bits every time.

    Raises:
        ValueError: a shape, dtype or device that the kernels cannot take.

    Source:
        Hendrycks and Gimpel, Gaussian error linear units, arXiv 1606.08415.
    """
    check_launchable("gelu_tanh", *([x] if bias is None else [x, bias]), one_dtype=False)
    if x.dim() == 0:
        raise ValueError("gelu_tanh: x must be (..., F), got a scalar; give it an axis")
    if bias is not None:
        if bias.shape != x.shape[-1:]:
            raise ValueError(
                f"gelu_tanh: bias must be ({x.shape[-1]},) for x of shape {tuple(x.shape)}, got "
                f"{tuple(bias.shape)}"
            )
        bias = bias.contiguous()
    y: Tensor = _Gelu.apply(x, bias)
    return y
