"""Plots of single operators: attention, the memory-bound kernels, and the memory of the loss."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bench.harness.results import ResultRow, in_order, timed
from bench.plot import style
from bench.plot.style import Found, LeftOut, Line


def attention(results: Found) -> Figure:
    rows = [
        row for row in timed(results, "attention")
        if row["case"]["packed"] and row["case"]["window"] is None
    ]  # fmt: skip
    widths = [D for D in in_order([r["case"]["D"] for r in rows]) if len(_lengths(rows, D)) > 1]
    if not widths:
        raise LeftOut("causal attention was measured at fewer than two lengths")
    rows = [row for row in rows if row["case"]["D"] in widths]
    passes = in_order([row["case"]["pass"] for row in rows])[:2]
    figure, grid = style.new_figure(results, 8.6, 1.2 + 2.9 * len(widths),
                              nrows=len(widths), ncols=len(passes), squeeze=False,
                              sharey=True)  # fmt: skip
    look = style.looks(in_order([row["variant"] for row in rows]))
    limit = results["limits"]["matmul_tflops"]
    drawn: list[Line] = []
    for axes, D in zip(grid, widths, strict=True):
        for ax, which in zip(axes, passes, strict=True):
            chosen = [r for r in rows if (r["case"]["D"], r["case"]["pass"]) == (D, which)]
            lines = [
                Line(look[name], *_points(chosen, name, "T", "tflops"))
                for name in in_order([row["variant"] for row in chosen])
            ]
            style.draw_lines(ax, lines)
            drawn += lines
            ax.axhline(limit, **style.LIMIT)
            style.lengths_axis(ax, _lengths(chosen, D))
            style.plain_grid(ax)
            ax.set_title(f"{which}, head width {D}")
            ax.set_ylim(0, 1.12 * limit)
            ax.yaxis.set_major_locator(MaxNLocator(5))
        axes[0].annotate(
            f"matrix product {limit:.3g}", (0.01, limit), xycoords=("axes fraction", "data"),
            xytext=(2, 4), textcoords="offset points", color=style.FAINT, size=9,
        )  # fmt: skip
        axes[0].set_ylabel("useful TFLOP/s")
    for ax in grid[-1]:
        ax.set_xlabel("length T")
    style.legend(figure, drawn, "outside right center")
    return figure


def kernels(results: Found) -> Figure:
    rows = [row for row in timed(results, "norms", "mlp", "losses") if "gbps" in row["metrics"]]
    if not any(row["ours"] for row in rows):
        raise LeftOut("none of our memory-bound kernels was timed")
    chosen = _largest_cases(rows)
    variants = in_order([row["variant"] for group in chosen.values() for row in group])
    look = style.looks(variants)
    figure, ax = style.new_figure(results, 8.6, 0.36 * len(chosen) + 1.5)
    limit = results["limits"]["copy_gbps"]
    ax.axvline(limit, **style.LIMIT)
    for name in reversed(variants):  # ours, which come first, on top
        points = [
            (row["metrics"]["gbps"], i) for i, group in enumerate(chosen.values())
            for row in group if row["variant"] == name
        ]  # fmt: skip
        colour, marker, text = look[name]
        size = 80 if colour == style.OURS else 46
        ax.scatter(*zip(*points, strict=True), s=size, color=colour, marker=marker, label=text,
                   zorder=4, edgecolors="white", linewidths=0.6, clip_on=False)  # fmt: skip
    ax.set_yticks(range(len(chosen)), list(chosen))
    ax.set_ylim(len(chosen) - 0.5, -0.6)
    ax.set_xlim(0, 1.05 * max(limit, *(row["metrics"]["gbps"] for row in rows)))
    ax.set_xlabel(f"useful GB/s; dashed: a copy, {limit:,.0f} GB/s")
    style.plain_grid(ax)
    handles, names = ax.get_legend_handles_labels()
    figure.legend(handles[::-1], names[::-1], loc="outside upper left", ncols=min(len(names), 6),
                  frameon=False, handletextpad=0.1, columnspacing=1.2)  # fmt: skip
    return figure


def loss_memory(results: Found) -> Figure:
    rows = [
        row for row in timed(results, "losses")
        if row["case"]["op"] == "linear_cross_entropy" and "peak_memory_bytes" in row["metrics"]
    ]  # fmt: skip
    if len({row["case"]["N"] for row in rows}) < 2:
        raise LeftOut("the loss has peak memory (measured on a GPU) at fewer than two batches")
    V = max(row["case"]["V"] for row in rows if row["case"]["V"] % 128 == 0)
    rows = [row for row in rows if row["case"]["V"] == V]
    look = style.looks(in_order([row["variant"] for row in rows]))
    lines = [Line(look[name], *_points(rows, name, "N", "peak_memory_bytes")) for name in look]
    figure, ax = style.new_figure(results, 8.6, 4.2)
    style.draw_lines(ax, lines)
    style.lengths_axis(ax, sorted({row["case"]["N"] for row in rows}))
    style.memory_axis(ax)
    style.plain_grid(ax)
    ax.set(xlabel="tokens", ylabel="peak memory of head and loss")
    ax.set_title(f"vocabulary {V:,}, width {rows[0]['case']['C']}, {rows[0]['case']['dtype']}")
    style.legend(figure, lines, "outside right center")
    return figure


def _largest_cases(rows: Sequence[ResultRow]) -> dict[str, list[ResultRow]]:
    """For each operator and pass, the case with the least width and then the most rows."""
    found = {}
    for op, which in in_order([(row["case"]["op"], row["case"]["pass"]) for row in rows]):
        cases = [r["case"] for r in rows if (r["case"]["op"], r["case"]["pass"]) == (op, which)]
        case = max(cases, key=lambda case: (-_width(case), case["N"]))
        name = f"{op} {which}" if which != "both" else op
        title = f"{name}  {case['N']:,} x {_width(case):,}"
        found[title] = [row for row in rows if row["case"] == case]
    return found


def _width(case: Mapping[str, Any]) -> int:
    return int(case.get("C") or case.get("F") or case["V"])


def _lengths(rows: Sequence[ResultRow], D: int) -> list[int]:
    return sorted({row["case"]["T"] for row in rows if row["case"]["D"] == D})


def _points(
    rows: Sequence[ResultRow], variant: str, x: str, metric: str
) -> tuple[list[float], list[float]]:
    points = sorted(
        (row["case"][x], row["metrics"][metric]) for row in rows if row["variant"] == variant
    )
    return [p[0] for p in points], [p[1] for p in points]
