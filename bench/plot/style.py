"""One look for all plots of results: a colour and marker for each variant.

Colours are those of Okabe and Ito (2008), which colour-blind readers can tell apart; ours is always
the same blue and drawn last. The names in a legend have the colour of their line.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

INK, FAINT, GRID = "#222222", "#767676", "#e4e4e4"
OURS = "#0072B2"
LIMIT: dict[str, Any] = {"color": FAINT, "linestyle": (0, (5, 3)), "linewidth": 1.2, "zorder": 2}


class Look(NamedTuple):
    """Colour, marker and name of a variant."""

    colour: str
    marker: str
    label: str


# Variant of a result file -> its look.
_LOOKS = {
    "triton": Look(OURS, "o", "ours"),
    "attn triton, kernels triton": Look(OURS, "o", "ours, Triton"),
    "attn sdpa, kernels triton": Look("#009E73", "s", "ours, SDPA + Triton kernels"),
    "attn triton, kernels torch": Look("#CC79A7", "D", "ours, Triton attention only"),
    "triton in place": Look("#56B4E9", "o", "ours, in place"),
    "torch-chunked": Look("#56B4E9", "s", "ours, in PyTorch"),
    "attn sdpa, kernels torch": Look("#56B4E9", "s", "ours, PyTorch + SDPA"),
    "attn naive, kernels torch": Look("#999999", "v", "ours, naive attention"),
    "attn flash, kernels torch": Look("#E69F00", "P", "ours, PyTorch + flash"),
    "naive": Look("#999999", "v", "naive"),
    "eager": Look("#999999", "v", "eager"),
    "sdpa": Look("#D55E00", "s", "SDPA"),
    "sdpa-flash": Look("#E69F00", "P", "SDPA flash"),
    "sdpa-cudnn": Look("#009E73", "X", "SDPA cuDNN"),
    "sdpa-efficient": Look("#CC79A7", "D", "SDPA efficient"),
    "sdpa-math": Look("#bbbbbb", "<", "SDPA math"),
    "flex": Look("#56B4E9", "^", "FlexAttention"),
    "flash_attn": Look("#222222", "*", "flash_attn"),
    "torch.compile": Look("#D55E00", "^", "torch.compile"),
    "liger": Look("#009E73", "X", "Liger-Kernel"),
    "F.rms_norm": Look("#E69F00", "P", "F.rms_norm"),
    "F.linear_cross_entropy": Look("#E69F00", "P", "F.linear_cross_entropy"),
    "transformers": Look("#009E73", "X", "transformers"),
}
_OTHERS = [("#D55E00", "D"), ("#E69F00", "P"), ("#CC79A7", "*"), ("#222222", ">")]
Found = Mapping[str, Any]


class LeftOut(Exception):
    """Raised when a result file lacks the rows of a plot; the message says which."""


@dataclass(frozen=True)
class Line:
    """The points of a variant, and their look."""

    look: Look
    xs: Sequence[float]
    ys: Sequence[float]


def looks(variants: Sequence[str]) -> dict[str, Look]:
    """A look for each variant; an unknown name gets one of the colours left over."""
    colours = {_LOOKS[name].colour for name in variants if name in _LOOKS}
    spare = [look for look in _OTHERS if look[0] not in colours] or _OTHERS
    found = {}
    for name in variants:
        if name in _LOOKS:
            found[name] = _LOOKS[name]
        else:
            found[name] = Look(*spare[0], name)
            spare = [*spare[1:], spare[0]]
    return found


def label(variant: str) -> str:
    """The name of a variant for readers."""
    return _LOOKS[variant].label if variant in _LOOKS else variant


def new_figure(
    results: Mapping[str, Any], width: float, height: float, *, margin: float = 0.0, **grid: Any
) -> tuple[Figure, Any]:
    """Make a figure and its axes, with the run that it shows named at the foot.

    Width, height and the margin at the right are in inches; `grid` is for `Figure.subplots`.
    """
    rcParams.update(
        {
            "font.size": 10.5, "axes.titlesize": 11.5, "axes.labelsize": 10.5,
            "axes.edgecolor": FAINT, "axes.labelcolor": INK, "text.color": INK,
            "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False,
            "axes.spines.right": False, "svg.hashsalt": "gpt2", "axes.titlelocation": "left",
        }
    )  # fmt: skip
    foot = 0.25 / height
    layout = ConstrainedLayoutEngine(rect=(0, foot, 1 - margin / width, 1 - foot))
    figure = Figure(figsize=(width, height), layout=layout)
    axes = figure.subplots(**grid)
    run = f"{results['device']}, PyTorch {results['versions']['torch']}, {results['date']}, commit "
    figure.text(0.995, 0.05 / height, run + results["commit"], ha="right", size=8, color=FAINT)
    return figure, axes


def plain_grid(ax: Axes, axis: str = "both") -> None:
    ax.grid(visible=True, axis=axis, color=GRID, linewidth=0.8)  # type: ignore[arg-type]
    ax.set_axisbelow(True)
    ax.tick_params(length=0)


def draw_lines(ax: Axes, lines: Sequence[Line]) -> None:
    """Draw lines with markers; ours is drawn last, on top."""
    for line in lines:
        ours = line.look.colour == OURS
        ax.plot(
            line.xs, line.ys, color=line.look.colour, marker=line.look.marker,
            markersize=6.5 if ours else 5.5, linewidth=2.6 if ours else 1.5,
            zorder=4 if ours else 3, markeredgecolor="white", markeredgewidth=0.6,
        )  # fmt: skip


def legend(beside: Figure | Axes, lines: Sequence[Line], where: Any) -> None:
    """Name the lines of a figure or of axes, each look once, in the order in which they end."""
    ends = {line.look: line.ys[-1] for line in lines}
    handles = [
        Line2D([], [], color=look.colour, marker=look.marker, label=look.label)
        for look in sorted(ends, key=lambda look: -ends[look])
    ]
    names = beside.legend(handles=handles, loc=where, frameon=False, labelcolor="linecolor")
    for text in names.get_texts():
        text.set_fontweight("bold" if text.get_color() == OURS else "normal")


def short(value: float, _position: int = 0) -> str:
    """`1.56B`, `650k`, `87`."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def lengths_axis(ax: Axes, ticks: Sequence[int]) -> None:
    """Make x logarithmic, with labels for powers of two."""
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks, [str(t) if t < 1024 else f"{t / 1024:g}k" for t in ticks])
    ax.xaxis.set_minor_locator(NullLocator())


def log_axis(ax: Axes, steps: Sequence[float], unit: float, form: Callable[[float], str]) -> None:
    """Make y logarithmic, with a tick at each power of `unit` times each of `steps`."""
    ax.set_yscale("log", base=unit)
    ax.yaxis.set_major_locator(LogLocator(base=unit, subs=steps))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: form(y)))
    ax.yaxis.set_minor_locator(NullLocator())


def memory_axis(ax: Axes) -> None:
    """Show bytes on y: ticks at powers of two, and between them if those are few."""
    low, high = ax.get_ylim()
    log_axis(ax, (1, 1.5) if high < 16 * low else (1,), 2, _bytes)


def rate_axis(ax: Axes) -> None:
    """Show tokens per second on y: ticks at 1, 2, 5, 10, ..."""
    log_axis(ax, (1, 2, 5), 10, short)


def _bytes(size: float) -> str:
    """`24 GiB`, `96 MiB`: for round sizes."""
    return f"{size / 2**30:g} GiB" if size >= 2**30 else f"{size / 2**20:g} MiB"
