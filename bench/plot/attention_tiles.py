"""A picture of the attention kernel: the tiles of the scores that it computes, and their use.

    python -m bench.plot.attention_tiles --out docs

writes `attention_tiles.png` and `attention_tiles.svg`. Left and middle: the tiles of the forward at
one length, causal and with a window. Right: the useful share of the executed work against length,
for our tile table and for tile shapes found elsewhere. It is arithmetic; a test holds it to the
FLOPs that are counted in Triton's interpreter.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import tyro
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from kernels._attention.tiles import choose_tiles

WHOLE, CUT = "whole: no mask", "cut: masked"
COLOURS = {WHOLE: "#3b6ea8", CUT: "#e3a33b"}
SKIPPED = "#ececec"
LENGTHS = (128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)


class Box(NamedTuple):
    """One computed tile: its first row and column, its size, and whether it is masked."""

    row: int
    col: int
    height: int
    width: int
    kind: str


def computed_tiles(length: int, window: int | None, block_m: int, block_n: int) -> Iterator[Box]:
    """The tiles that the forward visits, by the rule of `_key_ranges` in the kernel."""
    for row in range(0, length, block_m):
        first, whole = 0, 0
        diagonal = row // block_n * block_n
        if window is not None:
            first = max(row - window + 1, 0) // block_n * block_n
            whole = min(-(-max(row + block_m - window, 0) // block_n) * block_n, diagonal)
        for col in range(first, min(row + block_m, length), block_n):
            yield Box(row, col, block_m, block_n, WHOLE if whole <= col < diagonal else CUT)


def useful_share(length: int, block_m: int, block_n: int, window: int | None = None) -> float:
    """Visible scores over computed scores."""
    boxes = computed_tiles(length, window, block_m, block_n)
    hidden = 0 if window is None else max(0, length - window)  # rows that the window cuts
    visible = (length * (length + 1) - hidden * (hidden + 1)) / 2
    return visible / sum(box.height * box.width for box in boxes)


def _draw_tiles(ax: Axes, length: int, window: int | None, block_m: int, block_n: int) -> None:
    boxes = list(computed_tiles(length, window, block_m, block_n))
    ax.add_patch(Rectangle((0, 0), length, length, facecolor=SKIPPED))
    for box in boxes:
        corner, colour = (box.col, box.row), COLOURS[box.kind]
        ax.add_patch(
            Rectangle(corner, box.width, box.height, facecolor=colour, edgecolor="white", lw=0.6)
        )
    ax.plot([0, length], [0, length], color="black", lw=1)
    if window is not None:
        ax.plot([0, length - window], [window, length], color="black", lw=1)
    share = useful_share(length, block_m, block_n, window)
    masked = sum(box.kind == CUT for box in boxes) / len(boxes)
    what = "causal" if window is None else f"window {window}"
    ax.set_title(f"{what}: {share:.0%} useful, {masked:.0%} of the tiles masked", fontsize=10)
    ax.set(xlim=(0, length), ylim=(length, 0), xlabel="keys", ylabel="queries", aspect="equal")
    ax.set_xticks([0, length // 2, length])
    ax.set_yticks([0, length // 2, length])


def _draw_shares(ax: Axes) -> None:
    def ours(length: int) -> float:
        tile = choose_tiles("sm_90", 64, length, itemsize=2).fwd
        return useful_share(length, tile.block_m, tile.block_n)

    ax.plot(LENGTHS, [ours(n) for n in LENGTHS], "o-", color="#3b6ea8", label="our table (sm_90)")
    for (block_m, block_n), style in {(192, 128): "s:", (128, 128): "^--"}.items():
        shares = [useful_share(n, block_m, block_n) for n in LENGTHS]
        ax.plot(LENGTHS, shares, style, color="#777777", ms=4, label=f"{block_m} x {block_n} tiles")
    ax.set_xscale("log", base=2)
    ax.set_xticks([128, 256, 512, 1024, 2048, 4096], labels=["128", "256", "512", "1k", "2k", "4k"])
    ax.set(ylim=(0, 1), xlabel="length", ylabel="useful share of the executed work")
    ax.set_title("causal, head width 64", fontsize=10)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8, loc="lower right")


def plot(out: Path, length: int = 1024, window: int = 256) -> list[Path]:
    """Draw the picture into a folder.

    Args:
        out: the folder; made if needed.
        length: T of the two pictures of tiles.
        window: the window of the second.

    Returns:
        The files written.
    """
    tile = choose_tiles("sm_90", 64, length, itemsize=2).fwd
    with rc_context({"svg.hashsalt": "attention", "font.size": 9}):
        figure = Figure(figsize=(12, 4.2))
        causal, banded, shares = figure.subplots(1, 3)
        _draw_tiles(causal, length, None, tile.block_m, tile.block_n)
        _draw_tiles(banded, length, window, tile.block_m, tile.block_n)
        _draw_shares(shares)
        kinds = [*COLOURS.items(), ("never visited", SKIPPED)]
        figure.legend(
            handles=[Patch(color=colour, label=kind) for kind, colour in kinds],
            loc="lower left", bbox_to_anchor=(0.2, 0.0), ncols=3, frameon=False,
        )  # fmt: skip
        figure.tight_layout(rect=(0, 0.06, 1, 1))
        out.mkdir(parents=True, exist_ok=True)
        files = [out / "attention_tiles.png", out / "attention_tiles.svg"]
        figure.savefig(files[0], dpi=150)
        figure.savefig(files[1], metadata={"Date": None})
    return files


if __name__ == "__main__":
    for file in tyro.cli(plot):
        print(file)
