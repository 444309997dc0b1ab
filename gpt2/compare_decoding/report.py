"""How the comparison of decoding strategies is shown: tables, a plot, files."""

import dataclasses
import html
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2.common.files import atomic_write, write_json
from gpt2.compare_decoding.measures import HUMAN, Continuations, Measures
from gpt2.generate.sampling import Sampling

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

DEFINITIONS = {
    "perplexity": "the model's own, of the continuation given its prompt, at temperature 1, over "
    "all its tokens; <|endoftext|> counts where the text ends",
    "distinct_1": "different words / all words",
    "distinct_2": "different pairs of words / all pairs",
    "distinct_3": "different runs of 3 words / all runs of 3",
    "repetition_4": "share of runs of 4 words that stood earlier in the same text (seq-rep-4, "
    "Welleck et al. 2020), averaged over texts",
    "self_bleu_4": "mean BLEU-4 of a text against all others of the row (Zhu et al. 2018); higher "
    "is less diverse",
    "mean_words": "words in a continuation",
    "ended": "share of continuations that reached <|endoftext|>",
    "copied_8": "share of runs of 8 words that stand in the training text",
}
_EXAMPLES = 3
# Okabe and Ito's palette, which stays distinct for colour-blind readers.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C510A", "#5E4FA2")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")


# Header and format of each measure, in the order of the table.
_COLUMNS = {
    "perplexity": ("perplexity", "{:.1f}"),
    "distinct_1": ("distinct-1", "{:.3f}"),
    "distinct_2": ("distinct-2", "{:.3f}"),
    "distinct_3": ("distinct-3", "{:.3f}"),
    "repetition_4": ("rep-4", "{:.1%}"),
    "self_bleu_4": ("self-BLEU", "{:.3f}"),
    "mean_words": ("words", "{:.0f}"),
    "ended": ("ended", "{:.0%}"),
    "copied_8": ("copied-8", "{:.2%}"),
}


def table(measures: Mapping[str, Measures]) -> str:
    """The measures in columns, for a terminal."""
    rows = [["", *(header for header, _ in _COLUMNS.values())]]
    rows += [[name, *_cells(m)] for name, m in measures.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def write_report(
    out: Path,
    about: Mapping[str, Any],
    strategies: Mapping[str, Sampling],
    prompts: Sequence[str],
    rows: Mapping[str, Continuations],
    measures: Mapping[str, Measures],
    findings: Sequence[str],
) -> None:
    """Write decoding.json, decoding.md, decoding.png and decoding.svg to the folder `out`.

    Args:
        out: made when absent.
        about: what was compared, as names and plain values.
        strategies: the settings of each strategy.
        prompts: their texts.
        rows: the human continuations and those of each strategy.
        measures: one for each of `rows`.
        findings: sentences.
    """
    out.mkdir(parents=True, exist_ok=True)
    described = [
        {
            "name": name,
            "sampling": dataclasses.asdict(strategies[name]) if name in strategies else None,
            **{k: None if math.isnan(v) else v for k, v in dataclasses.asdict(m).items()},
        }
        for name, m in measures.items()
    ]
    write_json(
        out / "decoding.json",
        {
            **about,
            "definitions": DEFINITIONS,
            "rows": described,
            "findings": list(findings),
            "texts": [
                {"prompt": prompt, **{name: row.texts[i] for name, row in rows.items()}}
                for i, prompt in enumerate(prompts)
            ],
        },
    )
    markdown = _markdown(about, prompts, rows, measures, findings)
    with atomic_write(out / "decoding.md") as file:
        file.write(markdown.encode("utf-8"))
    _save_plot(out, measures, about["run"] + _at_step(about))


def _at_step(about: Mapping[str, Any]) -> str:
    return "" if about["step"] is None else f", step {about['step']:,}"


def _cells(m: Measures) -> list[str]:
    values = dataclasses.asdict(m)
    return [
        "-" if math.isnan(values[field]) else form.format(values[field])
        for field, (_, form) in _COLUMNS.items()
    ]


def _markdown(
    about: Mapping[str, Any],
    prompts: Sequence[str],
    rows: Mapping[str, Continuations],
    measures: Mapping[str, Measures],
    findings: Sequence[str],
) -> str:
    headers = [header for header, _ in _COLUMNS.values()]
    lines = [
        "# Decoding strategies compared",
        "",
        f"Model `{about['run']}`{_at_step(about)}; {about['prompts']} prompts of up to "
        f"{about['prompt_tokens']} tokens from the {about['split']} split of {about['data']}, each "
        f"continued by at most {about['max_tokens']} tokens; `human` is what "
        f"follows in the text itself, cut to the same length. Seed {about['seed']}; "
        f"{about['training_tokens_searched']:,} tokens of the training text were searched for "
        "copies.",
        "",
        f"| strategy | {' | '.join(headers)} |",
        f"| --- |{' ---: |' * len(headers)}",
        *(f"| {name} | {' | '.join(_cells(m))} |" for name, m in measures.items()),
        "",
        *(f"- {finding}" for finding in findings),
        "",
        "![Fluency against diversity](decoding.png)",
        "",
        "Columns:",
        "",
        *(f"- {_COLUMNS[field][0]}: {text}" for field, text in DEFINITIONS.items()),
        "",
        "Words are lower-cased runs of letters and digits; distinct-n is counted over the same "
        "number of n-grams in each row: "
        + ", ".join(f"{n:,}" for n in about["ngrams_counted"].values())
        + ".",
    ]
    step = max(len(prompts) // _EXAMPLES, 1)
    for i in range(0, len(prompts), step)[:_EXAMPLES]:
        lines += ["", f"## Prompt {i + 1}", "", f"> {_escape(prompts[i])}", ""]
        lines += ["| | continuation |", "| --- | --- |"]
        lines += [f"| {name} | {_escape(row.texts[i])} |" for name, row in rows.items()]
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    """Text of a model, so that none of it is read as Markdown or HTML."""
    text = re.sub(r"([\\`*_\[\]#|~])", r"\\\1", html.escape(text.strip(), quote=False))
    return text.replace("\n", "<br>")


def _save_plot(out: Path, measures: Mapping[str, Measures], title: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "decoding"  # the same file for the same figures
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 4.8), layout="constrained")
    plot(figure, axes, measures)
    axes.set_title(title)
    for kind, metadata in (("png", None), ("svg", {"Date": None})):
        with atomic_write(out / f"decoding.{kind}") as file:
            figure.savefig(file, format=kind, dpi=150, metadata=metadata)
    plt.close(figure)


def plot(figure: "Figure", axes: "Axes", measures: Mapping[str, Measures]) -> None:
    """Fluency against diversity: perplexity (log scale) and distinct-2, a point for each row."""
    from matplotlib.ticker import LogLocator, NullFormatter

    human = measures[HUMAN]
    axes.axvline(human.perplexity, color="0.6", lw=0.8, ls="--", zorder=0)
    axes.axhline(human.distinct_2, color="0.6", lw=0.8, ls="--", zorder=0)
    points = []
    for i, (name, m) in enumerate((n, m) for n, m in measures.items() if n != HUMAN):
        colour = _COLOURS[i % len(_COLOURS)]
        marker = _MARKERS[i % len(_MARKERS)]
        axes.plot(m.perplexity, m.distinct_2, marker, color=colour, ms=9, mec="white", mew=0.8)
        points.append((name, m))
    axes.plot(human.perplexity, human.distinct_2, "*", color="black", ms=15, mec="white")
    points.append((HUMAN, human))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(
        xlabel="perplexity of the continuation under the model (log scale; lower: more expected)",
        ylabel="distinct-2 (higher: more diverse)",
    )
    axes.margins(0.18, 0.12)
    axes.grid(alpha=0.25, which="both", lw=0.5)
    _label(figure, axes, points)


def _label(figure: "Figure", axes: "Axes", points: Sequence[tuple[str, Measures]]) -> None:
    """Write the names beside the points, each where it covers no other name or point."""
    from matplotlib.patheffects import withStroke

    places = [
        (9, 0, "left", "center"),
        (-9, 0, "right", "center"),
        (0, 9, "center", "bottom"),
        (0, -9, "center", "top"),
        (8, 8, "left", "bottom"),
        (-8, -8, "right", "top"),
        (8, -8, "left", "top"),
        (-8, 8, "right", "bottom"),
    ]
    figure.draw_without_rendering()
    taken: list[Bbox] = []
    inside = axes.get_window_extent()
    spots = [axes.transData.transform((m.perplexity, m.distinct_2)) for _, m in points]
    for (name, m), own in zip(points, spots, strict=True):
        best, fewest = None, math.inf
        for dx, dy, ha, va in places:
            label = axes.annotate(
                name,
                (m.perplexity, m.distinct_2),
                xytext=(dx, dy),
                textcoords="offset points",
                ha=ha,
                va=va,
                fontsize=9.5,
                path_effects=[withStroke(linewidth=3, foreground="white")],
            )
            box = label.get_window_extent().padded(2)
            covered = sum(box.overlaps(other) for other in taken)
            covered += sum(box.contains(*spot) for spot in spots if spot is not own)
            covered += not (inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1))
            if covered < fewest:
                if best is not None:
                    best.remove()
                best, fewest, best_box = label, covered, box
            else:
                label.remove()
        taken.append(best_box)
