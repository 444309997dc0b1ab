"""The plots of a report as SVG: the same bytes every time, readable without colour."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any

from gpt2.compare_decoding.measures import HUMAN
from gpt2.compare_decoding.plot import COLOURS, MARKERS, label_few, plot
from gpt2.report.result_files import Decoding, Sizes
from gpt2.report.sources import RunFacts, same_tokenizer

Curve = list[tuple[float, float, float]]  # tokens, FLOPs, loss

_BLUE, _ORANGE, _GREEN, _PURPLE, *_ = COLOURS
_GREY = "#5B6470"
_STYLE: Any = {
    "font.family": "serif",
    "font.serif": ["cmr10"],
    "mathtext.fontset": "cm",
    "axes.formatter.use_mathtext": True,
    "axes.unicode_minus": False,
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.edgecolor": _GREY,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.3,
    "legend.frameon": False,
    "svg.hashsalt": "report",
    "svg.fonttype": "path",
}
_WIDTH = 6.4  # inches; the text of an A4 page


def draw(
    runs: Sequence[RunFacts], decoding: Decoding | None = None, sizes: Sizes | None = None
) -> dict[str, bytes]:
    """Draw all figures of a report: file name -> SVG."""
    figures = {"loss.svg": loss_figure(runs[0])}
    if len(runs) > 1 and same_tokenizer(runs):
        figures["runs.svg"] = curves_figure(
            {r.name: _curve(r.val_curve, r.tokens_per_step, r.flops / r.steps) for r in runs}
        )
    if decoding is not None:
        figures["decoding.svg"] = decoding_figure(decoding)
    if sizes is not None:
        figures["sizes.svg"] = curves_figure(
            {s.name: _curve(s.val_curve, 1, s.flops / s.tokens) for s in sizes.rows}
        )
    return figures


def loss_figure(run: RunFacts) -> bytes:
    """Training, validation and test loss, and the learning rate, over the tokens seen."""
    with _figure(2, 2.5, widths=[2.2, 1]) as ((left, right), done):
        unit, name = _unit(run.tokens)
        scale = run.tokens_per_step / unit
        left.plot(*_scaled(run.train_curve, scale), color=_BLUE, lw=1, label="training")
        left.plot(
            *_scaled(run.val_curve, scale), color=_ORANGE, marker="o", ms=3, label="validation"
        )
        left.axhline(run.test.loss, color=_GREEN, ls="--", lw=1, label=f"test, {run.test.loss:.3f}")
        left.set(xlabel=f"tokens seen{name}", ylabel="cross-entropy (nats per token)")
        left.legend()
        right.plot(*_scaled(run.lr_curve, scale), color=_PURPLE)
        right.set(xlabel=f"tokens seen{name}", ylabel="learning rate", ylim=(0, None))
    return done.getvalue()


def curves_figure(curves: Mapping[str, Curve]) -> bytes:
    """Validation losses over tokens and over FLOPs, a curve for each name."""
    with _figure(2, 2.1) as ((left, right), done):
        unit, name = _unit(max(tokens for curve in curves.values() for tokens, _, _ in curve))
        looks = zip(itertools.cycle(COLOURS), itertools.cycle(MARKERS))
        for (label, curve), (color, marker) in zip(curves.items(), looks, strict=False):
            tokens, flops, losses = zip(*curve, strict=True)
            look = {"color": color, "marker": marker, "ms": 3, "label": label}
            left.plot([t / unit for t in tokens], losses, **look)
            right.plot(flops, losses, **look)
        left.set(xlabel=f"tokens seen{name}", ylabel="validation loss (nats per token)")
        right.set(xlabel="floating point operations", xscale="log")
        label_few(right.xaxis)
        left.legend()
    return done.getvalue()


def _curve(points: Sequence[tuple[int, float]], tokens: int, flops: float) -> Curve:
    """Points over steps as a curve over the tokens and FLOPs of that many."""
    return [(step * tokens, step * flops, loss) for step, loss in points]


def decoding_figure(decoding: Decoding) -> bytes:
    """Perplexity and distinct-2 of each strategy, and of the human text."""
    with _figure(1, 2.3) as (axes, done):
        plot(axes, {HUMAN: decoding.human, **decoding.strategies})
    return done.getvalue()


def _scaled(curve: list[tuple[int, float]], scale: float) -> tuple[list[float], list[float]]:
    return [step * scale for step, _ in curve], [value for _, value in curve]


def _unit(tokens: float) -> tuple[float, str]:
    """The unit that an axis of so many tokens is in, and its name in parentheses."""
    for unit, name in ((1e9, "billions"), (1e6, "millions"), (1e3, "thousands")):
        if tokens >= unit:
            return unit, f" ({name})"
    return 1.0, ""


@contextmanager
def _figure(columns: int, height: float, widths: Sequence[float] | None = None) -> Iterator[Any]:
    """Yield axes side by side, and a file that holds the SVG after the block."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    file = BytesIO()
    with rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        yield figure.subplots(1, columns, width_ratios=widths), file
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
