"""View tensors as rows, and choose tiles of rows: for the kernels that work row by row."""

import triton
from torch import Tensor

THREADS = 128  # of an element-wise program


def as_rows(x: Tensor) -> Tensor:
    """View (..., C) as (N, C) with a unit last stride; copy only if there is no such view."""
    if x.dim() != 2:
        x = x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def as_few_rows(*tensors: Tensor) -> list[Tensor]:
    """View tensors of one shape as rows, as one long row if all are contiguous."""
    if all(x.is_contiguous() for x in tensors):
        return [x.view(1, -1) for x in tensors]
    return [as_rows(x) for x in tensors]


def power_below(n: int) -> int:
    """The largest power of two that is at most n."""
    return 1 << (n.bit_length() - 1)


def element_tile(rows: Tensor, values: int) -> tuple[int, int]:
    """Choose rows and columns of an element-wise tile of (N, C), about `values` elements a lane.

    A row of the tile is as wide as all, half or a quarter of the threads load at 16 bytes each,
    whichever leaves the fewest threads idle in the last tile of a row.
    """
    n, width = rows.shape
    if n == 1:
        return 1, THREADS * values
    vector = 16 // rows.element_size()
    if width <= 32 * vector:
        columns = triton.next_power_of_2(width)
    else:
        columns = min(
            (THREADS * vector, THREADS // 2 * vector, THREADS // 4 * vector),
            key=lambda columns: (triton.cdiv(width, columns) * columns, -columns),
        )
    return THREADS * values // columns, columns
