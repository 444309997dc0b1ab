"""Plots of training: speed and memory against model size, and the ladder."""

import functools
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from bench.harness.results import in_order, timed
from bench.plot import style
from bench.plot.style import Found, LeftOut, Line
from gpt2.config import PRESETS
from gpt2.model import count_parameters
from gpt2.training.estimate import flops_per_token


def training_speed(results: Found) -> Figure:
    """Tokens per second against model size, with the limit of matrix products."""
    figure, panels = _over_sizes(results, "tokens_per_s")
    for ax, panel in panels:
        limit = _speed_limit(results, panel.problems)
        if limit is not None:
            ax.plot(*limit, **style.LIMIT)
            ax.annotate(
                "matrix products alone: 100%", (limit[0][0], limit[1][0]), xytext=(6, 5),
                textcoords="offset points", color=style.FAINT, size=9,
            )  # fmt: skip
            _write_shares(ax, panel.lines, limit)
        style.rate_axis(ax)
        style.legend(ax, panel.lines, "upper right")
    panels[0][0].set_ylabel("training, tokens per second")
    return figure


def training_memory(results: Found) -> Figure:
    """Peak memory against model size."""
    figure, panels = _over_sizes(results, "peak_memory_bytes")
    for ax, panel in panels:
        style.memory_axis(ax)
        style.legend(ax, panel.lines, "upper left")
    panels[0][0].set_ylabel("peak memory of a training step")
    return figure


def ladder(results: Found) -> Figure:
    """A bar for each rung of the ladder, with its gain over the rung before."""
    rows = [r for r in results["rows"] if r["bench"] == "training" and r["case"].get("ladder")]
    done = [row for row in rows if row["status"] == "ok"]
    if not done:
        raise LeftOut("no rung of a ladder was measured")
    case = done[0]["case"]
    rows, done = ([r for r in group if r["case"] == case] for group in (rows, done))
    rates = [row["metrics"]["tokens_per_s"] for row in done]
    fastest = max(rates)
    figure, ax = style.new_figure(results, 8.6, 0.38 * len(rows) + 1.3, margin=2.5)
    columns = {65: "tokens/s", 112: "gain", 172: "memory"}  # right ends, points from the bars
    for x, title in columns.items():
        _cell(ax, x, -0.85, title, style.FAINT)
    previous = None
    for i, row in enumerate(rows):
        if row["status"] != "ok":
            reason = textwrap.shorten(f"{row['status']}: {row['reason']}", 72, placeholder=" ...")
            ax.text(0, i, f" {reason}", color=style.FAINT, size=9, va="center", in_layout=False)
            continue
        rate = row["metrics"]["tokens_per_s"]
        ax.barh(i, rate, height=0.66, color=style.OURS, alpha=0.5 + 0.5 * rate / fastest)
        memory = row["metrics"].get("peak_memory_bytes")
        gain = "" if previous is None else f"x {rate / previous:.2f}"
        cells = (style.short(rate), gain, "" if memory is None else f"{memory / 2**30:.2f} GiB")
        for x, text in zip(columns, cells, strict=True):
            _cell(ax, x, i, text, style.INK)
        previous = rate
    ax.set_yticks(range(len(rows)), [row["variant"] for row in rows])
    ax.set_ylim(len(rows) - 0.5, -1.2)
    ax.set_xlim(0, fastest)
    ax.xaxis.set_visible(False)
    ax.spines["bottom"].set_visible(False)
    ax.tick_params(length=0)
    problem = f"{case['model']}, {case['B']} x {case['T']} tokens a step"
    ax.set_title(f"{problem}: in all x {rates[-1] / rates[0]:.1f}")
    return figure


@dataclass(frozen=True)
class Panel:
    """Eager or compiled: lines over model sizes, and the problem of each size."""

    compiled: bool
    lines: list[Line]
    problems: list[Mapping[str, Any]]


def _over_sizes(results: Found, metric: str) -> tuple[Figure, list[tuple[Axes, Panel]]]:
    """A figure of `metric` over the number of parameters, with a panel each."""
    panels = _panels(results, metric)
    figure, axes = style.new_figure(
        results, 8.6, 4.3, ncols=len(panels), sharey=True, squeeze=False
    )
    for ax, panel in zip(axes[0], panels, strict=True):
        style.draw_lines(ax, panel.lines)
        ax.set_xscale("log")
        sizes = [_parameters(case["model"]) for case in panel.problems]
        names = [
            f"{case['model'].removeprefix('gpt2-')}\n{style.short(size)}\n{case['B']}x{case['T']}"
            for case, size in zip(panel.problems, sizes, strict=True)
        ]
        ax.set_xticks(sizes, names, size=9)
        ax.xaxis.set_minor_locator(NullLocator())
        ax.margins(x=0.12, y=0.16)
        style.plain_grid(ax)
        mode = "torch.compile" if panel.compiled else "eager"
        ax.set_title(f"{mode}, {panel.problems[0]['dtype']}")
    return figure, list(zip(axes[0], panels, strict=True))


def _write_shares(
    ax: Axes, lines: Sequence[Line], limit: tuple[Sequence[float], Sequence[float]]
) -> None:
    """Write the share of the limit that ours reaches at each size, at the foot."""
    of_size = dict(zip(*limit, strict=True))
    for line in lines:
        if line.look.colour == style.OURS:
            for x, y in zip(line.xs, line.ys, strict=True):
                ax.text(
                    x, 0.025, f"{y / of_size[x]:.0%}", size=9,
                    transform=ax.get_xaxis_transform(), ha="center", color=style.OURS,
                )  # fmt: skip


def _cell(ax: Axes, x: float, row: float, text: str, colour: str) -> None:
    """Write a cell of the table beside the bars; it ends x points right of the axes."""
    ax.annotate(
        text, (1, row), xycoords=("axes fraction", "data"), xytext=(x, 0),
        textcoords="offset points", ha="right", va="center_baseline", color=colour, size=9.5,
        annotation_clip=False, in_layout=False,
    )  # fmt: skip


def _panels(results: Found, metric: str) -> list[Panel]:
    """The variants that have `metric` at two model sizes or more."""
    rows = [
        row for row in timed(results, "training")
        if metric in row["metrics"] and "compile" in row["case"] and "B" in row["case"]
        and row["case"]["model"] in PRESETS
    ]  # fmt: skip
    look = style.looks(in_order([row["variant"] for row in rows]))
    panels = []
    for compiled in (False, True):
        chosen = [row for row in rows if row["case"]["compile"] == compiled]
        cases = _problem_of_each_size([row["case"] for row in chosen])
        chosen = [row for row in chosen if row["case"] in cases]
        lines = []
        for name in look:
            points = sorted(
                (_parameters(row["case"]["model"]), row["metrics"][metric])
                for row in chosen if row["variant"] == name
            )  # fmt: skip
            if len(points) > 1:
                lines.append(Line(look[name], *zip(*points, strict=True)))
        if lines:
            panels.append(Panel(compiled, lines, cases))
    if not panels:
        raise LeftOut(f"no variant has {metric} at two model sizes")
    return panels


def _problem_of_each_size(cases: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The longest problem of each model in the commonest dtype, smallest model first."""
    if not cases:
        return []
    models = {
        case["dtype"]: {c["model"] for c in cases if c["dtype"] == case["dtype"]} for case in cases
    }
    dtype = max(models, key=lambda name: (len(models[name]), name == "bfloat16"))
    found = []
    for model in sorted(models[dtype], key=_parameters):
        its_cases = [c for c in cases if (c["model"], c["dtype"]) == (model, dtype)]
        found.append(max(its_cases, key=lambda case: case["T"]))
    return found


@functools.cache
def _parameters(preset: str) -> int:
    return count_parameters(PRESETS[preset])


def _speed_limit(
    results: Found, problems: Sequence[Mapping[str, Any]]
) -> tuple[list[int], list[float]] | None:
    """Parameters, and tokens/s of matrix products alone; None if measured in another dtype."""
    limits = results["limits"]
    if limits["matmul_dtype"] != problems[0]["dtype"]:
        return None
    rate = limits["matmul_tflops"] * 1e12
    per_token = [flops_per_token(PRESETS[case["model"]], case["T"]) for case in problems]
    return [_parameters(case["model"]) for case in problems], [rate / flops for flops in per_token]
