"""The plot of fluency against diversity, and what other plots of results share with it."""

import itertools
from collections.abc import Mapping
from typing import Any

from gpt2.compare_decoding.measures import HUMAN, Measures

# Okabe and Ito's palette, which stays distinct for colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C510A", "#5E4FA2")
MARKERS = "os^DvPXh"


def plot(axes: Any, measures: Mapping[str, Measures]) -> None:
    """Plot perplexity (log scale) and distinct-2, a point for each row of measures."""
    human = measures[HUMAN]
    axes.axvline(human.perplexity, color="0.6", lw=0.8, ls="--", zorder=0)
    axes.axhline(human.distinct_2, color="0.6", lw=0.8, ls="--", zorder=0)
    axes.plot(human.perplexity, human.distinct_2, "*", color="black", ms=11, label=HUMAN)
    looks = zip(itertools.cycle(COLOURS), itertools.cycle(MARKERS))
    strategies = {name: m for name, m in measures.items() if name != HUMAN}
    for (name, m), (colour, marker) in zip(strategies.items(), looks, strict=False):
        axes.plot(m.perplexity, m.distinct_2, marker, color=colour, ms=6, label=name)
    axes.set(
        xlabel="perplexity under the model (lower: more expected)",
        ylabel="distinct-2 (higher: more varied)",
        xscale="log",
    )
    label_few(axes.xaxis)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def label_few(axis: Any) -> None:
    """Label a logarithmic axis at powers of ten, a short one also at 2 and 5 times these."""
    from matplotlib.ticker import FuncFormatter, LogFormatterSciNotation, LogLocator, NullLocator

    low, high = axis.get_view_interval()
    small = FuncFormatter(lambda value, _: f"{value:,g}")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,), numticks=8))
    axis.set_major_formatter(
        small if low >= 0.1 and high < 1e5 else LogFormatterSciNotation(minor_thresholds=(9, 9))
    )
    axis.set_minor_locator(NullLocator())
