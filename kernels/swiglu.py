"""SwiGLU's elementwise part: silu(gate) * up, from two tensors or from one packed projection.

For each element, with s = sigmoid(gate):

    y = gate s up                             dup = dy gate s
                                              dgate = dy up s (1 + gate (1 - s))

Only gate and up are saved, and nothing is written over them; the backward computes s again. The
packed form reads both halves of a (..., 2F) buffer where they are, and writes the gradients into
the halves of one buffer: no copy, no concatenation.

Bytes moved, least possible and as done, for n elements of y in the tensors' own size: forward 3 n
(read gate and up, write y), backward 5 n (read dy, gate and up, write dgate and dup). Contiguous
tensors are one long row; others are cut into tiles of rows and columns. All arithmetic is float32.

Source: Shazeer, GLU variants improve Transformer (arXiv 2002.05202).
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels._common.launch import check_launchable, launch_options, on_device_of
from kernels._common.op import register_op
from kernels._common.reciprocal import LOG2E, reciprocal
from kernels._common.rows import THREADS, as_few_rows, element_tile

VALUES = 16  # elements per lane of each tensor


def swiglu_reference(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up in plain PyTorch, in float32 or wider: the specification."""
    wide = torch.promote_types(gate.dtype, torch.float32)
    return (F.silu(gate.to(wide)) * up.to(wide)).to(gate.dtype)


@triton.jit
def _tile(N, C, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Rows, columns and existence of the elements of this program, column blocks first."""
    blocks = tl.cdiv(C, COLS)
    program = tl.program_id(0).to(tl.int64)
    rows = program // blocks * ROWS + tl.arange(0, ROWS)[:, None]
    cols = program % blocks * COLS + tl.arange(0, COLS)[None, :]
    return rows, cols, (rows < N) & (cols < C)


@triton.jit(do_not_specialize=["N"])
def _swiglu_fwd_kernel(
    gate_ptr, up_ptr, y_ptr, stride_gate, stride_up, N, C, ROWS: tl.constexpr, COLS: tl.constexpr
):  # fmt: skip
    rows, cols, exists = _tile(N, C, ROWS, COLS)
    gate = tl.load(gate_ptr + rows * stride_gate + cols, exists, 0.0).to(tl.float32)
    up = tl.load(up_ptr + rows * stride_up + cols, exists, 0.0).to(tl.float32)
    y = gate * reciprocal(1 + tl.exp2(gate * -LOG2E), y_ptr.dtype.element_ty) * up
    tl.store(y_ptr + rows * C + cols, y.to(y_ptr.dtype.element_ty), exists)


@triton.jit(do_not_specialize=["N"])
def _swiglu_bwd_kernel(
    dy_ptr, gate_ptr, up_ptr, dgate_ptr, dup_ptr,
    stride_dy, stride_gate, stride_up, stride_grad, N, C,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    rows, cols, exists = _tile(N, C, ROWS, COLS)
    dy = tl.load(dy_ptr + rows * stride_dy + cols, exists, 0.0).to(tl.float32)
    gate = tl.load(gate_ptr + rows * stride_gate + cols, exists, 0.0).to(tl.float32)
    up = tl.load(up_ptr + rows * stride_up + cols, exists, 0.0).to(tl.float32)
    s = reciprocal(1 + tl.exp2(gate * -LOG2E), dgate_ptr.dtype.element_ty)
    silu = gate * s
    dup = dy * silu
    dgate = dy * up * (s + silu * (1 - s))
    place = rows * stride_grad + cols
    tl.store(dgate_ptr + place, dgate.to(dgate_ptr.dtype.element_ty), exists)
    tl.store(dup_ptr + place, dup.to(dup_ptr.dtype.element_ty), exists)


def _launch_fwd(gate: Tensor, up: Tensor) -> Tensor:
    y = gate.new_empty(gate.shape)
    if y.numel() == 0:
        return y
    gate, up = as_few_rows(gate, up)
    n, width = gate.shape
    rows, cols = element_tile(gate, VALUES)
    with on_device_of(y):
        _swiglu_fwd_kernel[(triton.cdiv(n, rows) * triton.cdiv(width, cols),)](
            gate, up, y, gate.stride(0), up.stride(0), n, width,
            ROWS=rows, COLS=cols, **launch_options(THREADS, gate),
        )  # fmt: skip
    return y


_fwd = register_op("swiglu_fwd", lambda gate, up: gate.new_empty(gate.shape))(_launch_fwd)


def _launch_bwd(dy: Tensor, gate: Tensor, up: Tensor, dgate: Tensor, dup: Tensor) -> None:
    """Fill dgate and dup, which have the same strides."""
    if dy.numel() == 0:
        return
    dy, gate, up, dgate, dup = as_few_rows(dy, gate, up, dgate, dup)
    n, width = gate.shape
    rows, cols = element_tile(gate, VALUES)
    with on_device_of(gate):
        _swiglu_bwd_kernel[(triton.cdiv(n, rows) * triton.cdiv(width, cols),)](
            dy, gate, up, dgate, dup,
            dy.stride(0), gate.stride(0), up.stride(0), dgate.stride(0), n, width,
            ROWS=rows, COLS=cols, **launch_options(THREADS, gate),
        )  # fmt: skip


def _allocate_gradients(dy: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), up.new_empty(up.shape)


@register_op("swiglu_bwd", _allocate_gradients)
def _bwd(dy: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    dgate, dup = _allocate_gradients(dy, gate, up)
    _launch_bwd(dy, gate, up, dgate, dup)
    return dgate, dup


@register_op(
    "swiglu_packed_fwd",
    lambda gate_up: gate_up.new_empty((*gate_up.shape[:-1], gate_up.shape[-1] // 2)),
)
def _packed_fwd(gate_up: Tensor) -> Tensor:
    return _launch_fwd(*gate_up.chunk(2, -1))


@register_op("swiglu_packed_bwd", lambda dy, gate_up: gate_up.new_empty(gate_up.shape))
def _packed_bwd(dy: Tensor, gate_up: Tensor) -> Tensor:
    dgate_up = gate_up.new_empty(gate_up.shape)
    _launch_bwd(dy, *gate_up.chunk(2, -1), *dgate_up.chunk(2, -1))
    return dgate_up


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return _fwd(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return _bwd(dy, *ctx.saved_tensors)


class _SwiGLUPacked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate_up):
        ctx.save_for_backward(gate_up)
        return _packed_fwd(gate_up)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return _packed_bwd(dy, *ctx.saved_tensors)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, with silu(x) = x * sigmoid(x).

    Args:
        gate, up: (..., F), one shape and dtype of float16, bfloat16 and float32. Any strides, also
            views of one projection: read in place as long as the elements of a row are neighbours
            and one stride leads from row to row; else copied.

    Returns:
        y: (..., F) contiguous, in their dtype.

    Raises:
        ValueError: a shape, dtype or device that the kernels cannot take.

    Source:
        Shazeer, GLU variants improve Transformer, arXiv 2002.05202.
    """
    check_launchable("swiglu", gate, up)
    if gate.shape != up.shape or gate.dim() == 0:
        raise ValueError(
            f"swiglu: gate and up must have one shape (..., F), got {tuple(gate.shape)} and "
            f"{tuple(up.shape)}; expand the smaller one"
        )
    y: Tensor = _SwiGLU.apply(gate, up)
    return y


def swiglu_packed(gate_up: Tensor) -> Tensor:
    """`swiglu` of the two halves of one projection, whose gradient is one tensor like it.

    Args:
        gate_up: (..., 2F): gate in the first F elements of a row, up in the others.

    Returns:
        y: (..., F) contiguous, in the dtype of gate_up.

    Raises:
        ValueError: a shape, dtype or device that the kernels cannot take.

    Source:
        As `swiglu`.
    """
    check_launchable("swiglu_packed", gate_up)
    if gate_up.dim() == 0 or gate_up.shape[-1] % 2:
        raise ValueError(
            f"swiglu_packed: gate_up must be (..., 2F), got shape {tuple(gate_up.shape)}; "
            "make its last axis even"
        )
    y: Tensor = _SwiGLUPacked.apply(gate_up)
    return y
