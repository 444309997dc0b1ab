"""Tile sizes of the attention kernels: a written table, so that nothing is tuned at start-up.

The rows were chosen without a GPU, by arithmetic on the compiled code, among the shapes that spill
no register on Triton 3.6 to 3.9 and fit the shared memory of their architecture:

- 128 rows of queries halve the traffic of keys and values against 64, and execute 1.12 times the
  useful work at T = 1024; up to a length of 256, where they would execute 1.5 times, it is 64 rows.
- sm_90 and sm_100: warp groups own 64 rows. The compiler waits for a product before it starts the
  softmax on it, so only another program on the same multiprocessor can overlap the two: the forward
  at width 64 stays under 128 registers with 8 warps, which lets two programs share one.
- sm_80: with 16 rows per warp the operands would read shared memory as fast as it goes, so the
  forward at width 64 gives each of 4 warps 32 rows. The RTX cards (sm_86, sm_89, sm_120) have half
  the tensor-core rate or less and take 8 warps and more programs.
- dk and dv stay in registers during the walk, which bounds their tiles: 128 keys at width 64 where
  they fit, which halves the atomic updates of dq against 64 keys; fewer as heads get wider. On
  sm_100 128 keys spill with Triton 3.8, and with 64 two programs share a multiprocessor. Widths
  up to 192 compute 256 columns as well, some of them masked, which takes registers: fewer again.
- sm_90: with Triton 3.6 and 3.9 dk and dv spill at width 128 with 64 rows, whatever the stages;
  with the others, 32 rows take more instructions. That row alone depends on the version.
- gfx942: with 16 rows, dk and dv take at most 256 registers, so that two waves share a SIMD.

`python -m bench.tune_attention` measures the alternatives on a GPU and prints rows for this table.
"""

from functools import cache
from typing import NamedTuple

import triton


class Tile(NamedTuple):
    """How one kernel is cut: rows of queries and of keys per tile, warps, pipeline stages."""

    block_m: int
    block_n: int
    warps: int
    stages: int


class Tiles(NamedTuple):
    """The tiles of one problem: forward; dq alone; dk and dv, with or without dq added."""

    fwd: Tile
    dq: Tile
    dkv: Tile


SHORT = 256
"""Lengths up to this take the first row of a head width, longer ones the last."""

# (architecture, head width up to): rows (forward, dq, dk and dv) of short and of long sequences, or
# one row for both.
TABLE: dict[tuple[str, int], tuple[tuple[tuple[int, int, int, int], ...], ...]] = {
    ("sm_80", 64): (
        ((64, 32, 4, 3), (64, 32, 4, 2), (32, 64, 4, 2)),
        ((128, 32, 4, 3), (64, 32, 4, 2), (32, 64, 4, 2)),
    ),
    ("sm_80", 128): (((64, 64, 4, 2), (64, 32, 4, 2), (32, 64, 8, 2)),),
    ("sm_80", 256): (((64, 64, 8, 2), (64, 32, 8, 1), (16, 32, 8, 2)),),
    ("sm_86", 64): (
        ((64, 32, 4, 3), (64, 32, 4, 2), (32, 64, 4, 2)),
        ((128, 32, 8, 3), (64, 32, 4, 2), (32, 64, 4, 2)),
    ),
    ("sm_86", 128): (((64, 32, 4, 2), (128, 32, 8, 2), (32, 64, 8, 2)),),
    ("sm_86", 256): (((64, 32, 8, 2), (64, 32, 8, 1), (16, 32, 8, 2)),),
    ("sm_90", 64): (
        ((64, 64, 4, 3), (64, 64, 4, 2), (64, 64, 8, 2)),
        ((128, 64, 8, 3), (64, 64, 4, 2), (64, 128, 8, 3)),
    ),
    ("sm_90", 128): (
        ((64, 64, 4, 2), (64, 64, 4, 2), (64, 64, 8, 2)),
        ((128, 64, 8, 3), (128, 64, 8, 2), (64, 64, 8, 2)),
    ),
    ("sm_90", 192): (((64, 32, 8, 2), (64, 16, 8, 2), (16, 32, 8, 2)),),
    ("sm_90", 256): (((64, 32, 8, 2), (64, 16, 8, 2), (32, 32, 8, 2)),),
    ("sm_100", 64): (
        ((64, 64, 4, 3), (64, 64, 4, 2), (64, 64, 4, 2)),
        ((128, 64, 8, 2), (128, 64, 8, 2), (64, 64, 8, 2)),
    ),
    ("sm_100", 128): (
        ((64, 64, 4, 2), (64, 64, 4, 2), (64, 64, 8, 2)),
        ((128, 64, 8, 2), (128, 32, 8, 2), (64, 64, 8, 2)),
    ),
    ("sm_100", 192): (
        ((64, 32, 4, 2), (64, 32, 4, 1), (16, 32, 8, 2)),
        ((128, 32, 8, 2), (64, 32, 4, 1), (16, 32, 8, 2)),
    ),
    ("sm_100", 256): (
        ((64, 32, 4, 2), (64, 32, 4, 1), (32, 32, 8, 2)),
        ((128, 32, 8, 2), (64, 32, 4, 1), (32, 32, 8, 2)),
    ),
    ("sm_120", 64): (
        ((64, 32, 4, 3), (64, 64, 4, 2), (32, 64, 4, 2)),
        ((128, 32, 8, 3), (64, 64, 4, 2), (32, 64, 4, 2)),
    ),
    ("sm_120", 128): (((64, 32, 4, 2), (128, 32, 8, 2), (64, 64, 8, 2)),),
    ("sm_120", 256): (((64, 32, 8, 2), (64, 32, 8, 1), (32, 32, 8, 2)),),
    ("gfx942", 64): (
        ((64, 64, 4, 2), (64, 32, 4, 2), (16, 64, 2, 1)),
        ((128, 64, 4, 2), (64, 64, 4, 2), (16, 128, 4, 1)),
    ),
    ("gfx942", 128): (
        ((64, 32, 4, 2), (64, 32, 4, 2), (16, 64, 4, 1)),
        ((128, 32, 4, 2), (64, 32, 4, 2), (16, 64, 4, 1)),
    ),
    ("gfx942", 256): (((64, 16, 4, 1), (64, 16, 4, 1), (16, 32, 4, 1)),),
    # Float32 products without TF32 keep whole operands in registers; unknown GPUs may have little
    # shared memory. Slow, but it runs.
    ("other", 64): (((32, 32, 8, 1), (32, 32, 8, 1), (32, 32, 8, 1)),),
    ("other", 256): (((16, 16, 8, 1), (16, 16, 8, 1), (16, 16, 8, 1)),),
}

if not triton.__version__.startswith(("3.7.", "3.8.")):  # see above
    TABLE["sm_90", 128] = tuple((*row[:2], (32, 64, 8, 2)) for row in TABLE["sm_90", 128])

# With several documents in a sequence, tiles are small: those of 32 x 16 execute 1.31 times the
# useful work for stories of 212 tokens on average, those of 64 x 32 1.63 times, of 128 x 64 2.25.
DOCUMENTS = Tiles(Tile(32, 16, 2, 2), Tile(32, 16, 2, 2), Tile(16, 32, 2, 2))
# On sm_90 a second stage spills registers with Triton 3.6 or 3.9.
DOCUMENTS_SM_90 = Tiles(Tile(32, 16, 2, 1), Tile(32, 16, 2, 2), Tile(16, 32, 2, 1))
DOCUMENTS_WIDE = Tiles(Tile(32, 16, 4, 2), Tile(32, 16, 4, 2), Tile(16, 32, 8, 2))

# A window's edge and the numbers of dropout are live with a tile. Where its row would spill then,
# or its products be serialised, by any Triton: the tiles with either, and those with dropout.
WINDOW: dict[tuple[str, int], dict[str, Tile]] = {
    ("sm_80", 128): {"fwd": Tile(128, 32, 8, 2)},
    ("sm_90", 128): {
        "fwd": Tile(64, 64, 8, 2), "dq": Tile(64, 32, 8, 2), "dkv": Tile(16, 64, 8, 2),
    },
    ("sm_100", 64): {"dq": Tile(64, 32, 4, 1), "dkv": Tile(64, 64, 8, 2)},
    ("sm_120", 64): {"dq": Tile(64, 32, 8, 2), "dkv": Tile(32, 64, 8, 2)},
    ("sm_120", 128): {
        "fwd": Tile(64, 32, 8, 2), "dq": Tile(64, 64, 8, 2), "dkv": Tile(32, 64, 8, 2),
    },
}  # fmt: skip
DROPOUT = WINDOW | {
    ("sm_80", 64): {
        "fwd": Tile(128, 32, 8, 2), "dq": Tile(128, 32, 8, 2), "dkv": Tile(32, 64, 8, 2),
    },
    ("sm_80", 128): {"fwd": Tile(128, 32, 8, 2), "dkv": Tile(32, 64, 8, 1)},
    ("sm_86", 64): {"dq": Tile(128, 32, 8, 2), "dkv": Tile(32, 64, 8, 1)},
    ("sm_86", 128): {"fwd": Tile(64, 32, 8, 2), "dq": Tile(64, 32, 8, 2)},
    ("sm_90", 64): {"dq": Tile(64, 32, 4, 2), "dkv": Tile(32, 64, 8, 2)},
    ("sm_100", 128): {"dq": Tile(128, 32, 8, 2)},
}  # fmt: skip

# Head widths up to which the tensor memory accelerator adds whole tiles of dq: one instruction for
# a branch and an atomic addition of each lane for every four elements. Wider, and on sm_90 in the
# tiles of documents, registers spill.
WHOLE_TILES = {"sm_90": 64, "sm_100": 256, "sm_120": 64}

# Architectures that take the rows of another.
SAME = {"sm_89": "sm_86", "sm_103": "sm_100", "sm_121": "sm_120"}


def rows_of(architecture: str) -> str:
    """Name the architecture whose rows this one takes; "other" for one that the table lacks."""
    rows = SAME.get(architecture, architecture)
    return rows if (rows, 64) in TABLE else "other"


def adds_whole_tiles(
    architecture: str, head_width: int, itemsize: int, documents: bool = False
) -> bool:
    """Whether the backward adds up dq by tiles: the row says so, and 16-byte strides allow it."""
    widest = WHOLE_TILES.get(rows_of(architecture), 0) if itemsize == 2 and not documents else 0
    return head_width <= widest and head_width % 4 == 0


@cache
def choose_tiles(
    architecture: str, head_width: int, length: int, itemsize: int,
    documents: bool = False, window: bool = False, dropout: bool = False,
) -> Tiles:  # fmt: skip
    """Look up the tiles for D = head_width, T = length and elements of itemsize bytes.

    With `documents` in a sequence, only small tiles execute little more than the useful work.
    """
    if architecture == "interpreter":  # as few turns of its loops as offsets allow: see operators
        rows = min(max(16, triton.next_power_of_2(length)), 128)
        return Tiles(*[Tile(rows, rows, 4, 1)] * 3)
    if documents:
        narrow = DOCUMENTS_SM_90 if rows_of(architecture) == "sm_90" else DOCUMENTS
        return DOCUMENTS_WIDE if head_width > 64 else narrow
    name = "other" if itemsize == 4 else rows_of(architecture)
    row = name, min(width for row, width in TABLE if row == name and width >= head_width)
    tiles = Tiles(*[Tile(*tile) for tile in TABLE[row][-1 if length > SHORT else 0]])
    others = DROPOUT if dropout else WINDOW if window else {}
    return tiles._replace(**others.get(row, {}))
