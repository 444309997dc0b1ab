"""Add up the partial sums of all programs, the last step of a gradient summed over rows."""

import triton
import triton.language as tl
from torch import Tensor

from kernels._common.launch import launch_options

# One tile takes the partial sums of all programs of most GPUs, so that every load is in flight at
# once; 16 columns of float32 are two sectors of memory.
ROWS, COLS, THREADS = 512, 16, 256


@triton.jit(do_not_specialize=["P"])
def sum_partials_kernel(
    partials_ptr, first_ptr, second_ptr, P, C, ROWS: tl.constexpr, COLS: tl.constexpr
):
    cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
    exists = cols < C
    partials_ptr += tl.program_id(1).to(tl.int64) * P * C
    total = tl.zeros((COLS,), tl.float32)
    for start in range(0, P, ROWS):
        rows = start + tl.arange(0, ROWS)[:, None]
        tile = tl.load(
            partials_ptr + rows.to(tl.int64) * C + cols[None, :],
            mask=(rows < P) & exists[None, :],
            other=0.0,
        )
        total += tl.sum(tile, 0)
    if tl.program_id(1) == 0:
        tl.store(first_ptr + cols, total.to(first_ptr.dtype.element_ty), exists)
    else:
        tl.store(second_ptr + cols, total.to(second_ptr.dtype.element_ty), exists)


def sum_partials(partials: Tensor, first: Tensor, second: Tensor | None = None) -> None:
    """Fill `first` (C,), and `second`, with the sums over P of partials (1 or 2, P, C) float32."""
    count, programs, width = partials.shape
    assert count == (1 if second is None else 2), partials.shape
    sum_partials_kernel[(triton.cdiv(width, COLS), count)](
        partials, first, first if second is None else second, programs, width,
        ROWS=ROWS, COLS=COLS, **launch_options(THREADS, partials),
    )  # fmt: skip
