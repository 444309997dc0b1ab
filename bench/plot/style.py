"""One look for all plots of results: colours by who is measured, labels beside what they name.

Colours are those of Okabe and Ito (2008), which stay apart for colour-blind readers; ours is always
the same blue and drawn last. Text is in the colour of its line, and a marker's shape says the same.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

INK, FAINT, GRID = "#222222", "#767676", "#e4e4e4"
OURS = "#0072B2"
LABEL_SIZE = 9.5
LIMIT: dict[str, Any] = {"color": FAINT, "linestyle": (0, (5, 3)), "linewidth": 1.2, "zorder": 2}
LEADER: dict[str, Any] = {
    "arrowstyle": "-", "lw": 0.7, "alpha": 0.55, "shrinkB": 5, "relpos": (0, 0.5),
}  # fmt: skip
# Line and dot: colour, marker. Names are the variants of result files.
_LOOKS = {
    "triton": (OURS, "o"),
    "attn triton, kernels triton": (OURS, "o"),
    "attn sdpa, kernels triton": ("#009E73", "s"),
    "attn triton, kernels torch": ("#CC79A7", "D"),
    "triton in place": ("#56B4E9", "o"),
    "torch-chunked": ("#56B4E9", "s"),
    "attn sdpa, kernels torch": ("#56B4E9", "s"),
    "attn naive, kernels torch": ("#999999", "v"),
    "attn flash, kernels torch": ("#E69F00", "P"),
    "naive": ("#999999", "v"),
    "eager": ("#999999", "v"),
    "sdpa": ("#D55E00", "s"),
    "sdpa-flash": ("#E69F00", "P"),
    "sdpa-cudnn": ("#009E73", "X"),
    "sdpa-efficient": ("#CC79A7", "D"),
    "sdpa-math": ("#bbbbbb", "<"),
    "flex": ("#56B4E9", "^"),
    "flash_attn": ("#222222", "*"),
    "torch.compile": ("#D55E00", "^"),
    "liger": ("#009E73", "X"),
    "F.rms_norm": ("#E69F00", "P"),
    "F.linear_cross_entropy": ("#E69F00", "P"),
    "transformers": ("#009E73", "X"),
}
_OTHERS = [("#D55E00", "D"), ("#E69F00", "P"), ("#CC79A7", "*"), ("#222222", ">")]
_LABELS = {
    "triton": "ours",
    "triton in place": "ours, in place",
    "torch-chunked": "ours, in PyTorch",
    "attn triton, kernels triton": "ours, Triton",
    "attn sdpa, kernels triton": "ours, SDPA + Triton kernels",
    "attn triton, kernels torch": "ours, Triton attention only",
    "attn sdpa, kernels torch": "ours, PyTorch + SDPA",
    "attn naive, kernels torch": "ours, naive attention",
    "attn flash, kernels torch": "ours, PyTorch + flash",
    "sdpa": "SDPA",
    "sdpa-flash": "SDPA flash",
    "sdpa-cudnn": "SDPA cuDNN",
    "sdpa-efficient": "SDPA efficient",
    "sdpa-math": "SDPA math",
    "flex": "FlexAttention",
    "liger": "Liger-Kernel",
}


Found = Mapping[str, Any]


class LeftOut(Exception):
    """The result file has not what a plot needs; the message says what that is."""


class Look(NamedTuple):
    """How a variant is drawn."""

    colour: str
    marker: str
    label: str


@dataclass(frozen=True)
class Line:
    """A variant's points, and how they are drawn."""

    look: Look
    xs: Sequence[float]
    ys: Sequence[float]


def looks(variants: Sequence[str]) -> dict[str, Look]:
    """A look for each variant; unknown names get the colours that are left over."""
    taken = {_LOOKS[name] for name in variants if name in _LOOKS}
    colours = {look[0] for look in taken}
    spare = [look for look in _OTHERS if look[0] not in colours] or _OTHERS
    found = {}
    for name in variants:
        if name in _LOOKS:
            found[name] = Look(*_LOOKS[name], label(name))
        else:
            found[name] = Look(*spare[0], label(name))
            spare = [*spare[1:], spare[0]]
    return found


def label(variant: str) -> str:
    """What readers see."""
    return _LABELS.get(variant, variant)


def new_figure(
    results: Mapping[str, Any], width: float, height: float, *, labels: float = 0.0, **grid: Any
) -> tuple[Figure, Any]:
    """A figure and its axes, with the run that it shows at its foot.

    Args:
        results: the result file.
        width, height: in inches.
        labels: inches kept free at the right, for `label_ends`.
        grid: for `plt.subplots`.
    """
    plt.rcParams.update(
        {
            "font.size": 10.5, "axes.titlesize": 11.5, "axes.labelsize": 10.5,
            "axes.edgecolor": FAINT, "axes.labelcolor": INK, "text.color": INK,
            "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False,
            "axes.spines.right": False, "svg.hashsalt": "gpt2", "axes.titlelocation": "left",
        }
    )  # fmt: skip
    figure, axes = plt.subplots(figsize=(width, height), layout="constrained", **grid)
    foot = 0.25 / height
    figure.get_layout_engine().set(rect=(0, foot, 1 - labels / width, 1 - foot))
    run = f"{results['device']}, PyTorch {results['versions']['torch']}, {results['date']}, commit "
    figure.text(0.995, 0.05 / height, run + results["commit"], ha="right", size=8, color=FAINT)
    return figure, axes


def plain_grid(ax: Axes, axis: str = "both") -> None:
    ax.grid(visible=True, axis=axis, color=GRID, linewidth=0.8)  # type: ignore[arg-type]
    ax.set_axisbelow(True)
    ax.tick_params(length=0)


def draw_lines(ax: Axes, lines: Sequence[Line]) -> None:
    """Lines with markers; ours on top."""
    for line in lines:
        ours = line.look.colour == OURS
        ax.plot(
            line.xs, line.ys, color=line.look.colour, marker=line.look.marker,
            markersize=6.5 if ours else 5.5, linewidth=2.6 if ours else 1.5,
            zorder=4 if ours else 3, markeredgecolor="white", markeredgewidth=0.6,
        )  # fmt: skip


def freeze(figure: Figure) -> None:
    """Settle the layout for good, so that what is added by place stays where it is put."""
    figure.canvas.draw()
    figure.set_layout_engine("none")


def label_ends(
    figure: Figure, ax: Axes, lines: Sequence[Line], elsewhere: Sequence[Line] = ()
) -> None:
    """Write each label right of its line's last point, apart from the others.

    Args:
        figure: made with room for labels, and frozen.
        ax: the axes, the rightmost ones.
        lines: what is labelled.
        elsewhere: lines of axes further left, of which those not among `lines` are named below.
    """
    to_fraction = figure.transFigure.inverted().transform
    box = ax.get_position()
    named = {line.look for line in lines}
    unnamed = dict.fromkeys(line.look for line in elsewhere if line.look not in named)
    ends = [to_fraction(ax.transData.transform((line.xs[-1], line.ys[-1])))[1] for line in lines]
    texts: list[tuple[float, Look, Line | None]] = [(box.y0, look, None) for look in unnamed]
    texts += [(end, line.look, line) for end, line in zip(ends, lines, strict=True)]
    texts.sort(key=lambda text: text[0])
    gap = 1.35 * LABEL_SIZE / 72 / figure.get_figheight()
    ys = _spread([end for end, _, _ in texts], gap)
    for y, (_, look, line) in zip(ys, texts, strict=True):
        point = (line.xs[-1], line.ys[-1]) if line else None
        ax.annotate(
            look.label, point or (box.x1, y), xycoords="data" if point else "figure fraction",
            xytext=(box.x1 + 0.012, y), textcoords="figure fraction", va="center",
            color=look.colour, size=LABEL_SIZE, annotation_clip=False,
            fontweight="bold" if look.colour == OURS else "normal",
            arrowprops={**LEADER, "color": look.colour} if point else None,
        )  # fmt: skip


def _spread(ys: Sequence[float], gap: float) -> list[float]:
    """Ascending positions moved as little as keeps them `gap` apart: groups around their means."""
    groups: list[list[float]] = []
    for y in ys:
        groups.append([y])
        while len(groups) > 1 and _bottom(groups[-1], gap) - _top(groups[-2], gap) < gap:
            last = groups.pop()
            groups[-1] += last
    return [_bottom(group, gap) + i * gap for group in groups for i in range(len(group))]


def _bottom(group: Sequence[float], gap: float) -> float:
    return sum(group) / len(group) - gap * (len(group) - 1) / 2


def _top(group: Sequence[float], gap: float) -> float:
    return _bottom(group, gap) + gap * (len(group) - 1)


def short(value: float, _position: int = 0) -> str:
    """`1.56B`, `650k`, `87`."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def lengths_axis(ax: Axes, ticks: Sequence[int]) -> None:
    """Powers of two on x."""
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks, [str(t) if t < 1024 else f"{t / 1024:g}k" for t in ticks])
    ax.xaxis.set_minor_locator(NullLocator())


def log_axis(ax: Axes, steps: Sequence[float], unit: float, form: Callable[[float], str]) -> None:
    """A logarithmic y axis with a tick at each power of the base `unit` times each of `steps`."""
    ax.set_yscale("log", base=unit)
    ax.yaxis.set_major_locator(LogLocator(base=unit, subs=steps))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: form(y)))
    ax.yaxis.set_minor_locator(NullLocator())


def memory_axis(ax: Axes) -> None:
    """Bytes on y: ticks at powers of two, and between them where those are few."""
    low, high = ax.get_ylim()
    log_axis(ax, (1, 1.5) if high < 16 * low else (1,), 2, _bytes)


def rate_axis(ax: Axes) -> None:
    """Tokens per second on y, ticks at 1, 2, 5, 10, ..."""
    log_axis(ax, (1, 2, 5), 10, short)


def _bytes(size: float) -> str:
    """`24 GiB`, `96 MiB`: for round sizes."""
    return f"{size / 2**30:g} GiB" if size >= 2**30 else f"{size / 2**20:g} MiB"
