"""The plots of a comparison of sizes: validation loss against tokens, and against compute.

Colours are Okabe and Ito's, told apart with any colour vision; each line has a marker of its own.
The legend gives the last loss of each size.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gpt2.common.files import atomic_write
from gpt2.compare_sizes.results import Comparison, Row

_NAMES = ("loss_tokens", "loss_compute")
PLOTS = tuple(f"{name}.{kind}" for name in _NAMES for kind in ("png", "svg"))
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = "osD^vPXh"
_STYLE: dict[Any, Any] = {
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#767676",
    "axes.titlelocation": "left",
    "svg.hashsalt": "sizes",
}


def plot(out: Path, comparison: Comparison) -> None:
    """Draw loss_tokens and loss_compute into a folder, as PNG and as SVG."""

    unit, name = (1e6, "millions") if comparison.tokens >= 1e6 else (1e3, "thousands")

    def tokens(row: Row) -> list[float]:
        return [seen / unit for seen, _ in row.val_curve]

    def flops(row: Row) -> list[float]:
        return [row.flops * (seen / row.tokens) for seen, _ in row.val_curve]

    rows = comparison.rows
    where = f"{comparison.data}, {comparison.device}"
    _draw(
        out / _NAMES[0], rows, tokens, f"training tokens ({name})", f"Loss against tokens: {where}"
    )
    _draw(
        out / _NAMES[1],
        rows,
        flops,
        "training compute (FLOPs, forward and backward, 'exact' convention)",
        f"Loss against compute: {where}",
        log=True,
    )


def _draw(
    path: Path,
    rows: Sequence[Row],
    xs_of: Callable[[Row], list[float]],
    xlabel: str,
    title: str,
    *,
    log: bool = False,
) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(7.5, 4.4), layout="constrained")
        axes = figure.subplots()
        for i, row in enumerate(rows):
            losses = [loss for _, loss in row.val_curve]
            axes.plot(
                xs_of(row),
                losses,
                label=f"{row.name}  {losses[-1]:.3f}",
                color=_COLOURS[i % len(_COLOURS)],
                marker=_MARKERS[i % len(_MARKERS)],
                ms=5,
                markeredgecolor="white",
                markeredgewidth=0.6,
            )
        if log:
            axes.set_xscale("log")
        axes.set(xlabel=xlabel, ylabel="validation loss (nats per token)", title=title)
        axes.grid(color="#e4e4e4")
        axes.set_axisbelow(True)
        axes.legend(frameon=False)
        for kind in ("png", "svg"):
            with atomic_write(path.with_suffix(f".{kind}")) as file:
                metadata = {"Date": None} if kind == "svg" else {}
                figure.savefig(file, format=kind, dpi=150, metadata=metadata)
