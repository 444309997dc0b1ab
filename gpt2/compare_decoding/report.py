"""Writes the comparison of decoding strategies: tables, a plot, files."""

import dataclasses
import html
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt2.common.files import atomic_write, write_json
from gpt2.compare_decoding.measures import Continuations, Measures
from gpt2.compare_decoding.plot import plot
from gpt2.generate.sampling import Sampling

# Header, format and definition of each measure, in the order of the table.
_COLUMNS = {
    "perplexity": (
        "perplexity",
        ".1f",
        "the model's own, of the continuation given its prompt, at temperature 1, over all its "
        "tokens; <|endoftext|> counts where the text ends",
    ),
    "distinct_1": ("distinct-1", ".3f", "different words / all words"),
    "distinct_2": ("distinct-2", ".3f", "different pairs of words / all pairs"),
    "distinct_3": ("distinct-3", ".3f", "different runs of 3 words / all runs of 3"),
    "repetition_4": (
        "rep-4",
        ".1%",
        "share of runs of 4 words that stood earlier in the same text (seq-rep-4, Welleck et al. "
        "2020), averaged over texts",
    ),
    "self_bleu_4": (
        "self-BLEU",
        ".3f",
        "mean BLEU-4 of a text against all others of the row (Zhu et al. 2018); higher is less "
        "diverse",
    ),
    "mean_words": ("words", ".0f", "words in a continuation"),
    "ended": ("ended", ".0%", "share of continuations that reached <|endoftext|>"),
    "copied_8": ("copied-8", ".2%", "share of runs of 8 words that stand in the training text"),
}
_HEADERS = [header for header, _, _ in _COLUMNS.values()]
_EXAMPLES = 3


def table(measures: Mapping[str, Measures]) -> str:
    """Format the measures as a table for a terminal."""
    return in_columns([["", *_HEADERS], *([name, *cells(m)] for name, m in measures.items())])


def in_columns(rows: Sequence[Sequence[str]]) -> str:
    """Align the cells of rows: those of the first column left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *figures in rows:
        right = [cell.rjust(width) for cell, width in zip(figures, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *right]))
    return "\n".join(lines)


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

    `about` holds the settings of the comparison as plain values, `rows` and `measures` the human
    continuations and those of each strategy.
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
            "definitions": {field: text for field, (_, _, text) in _COLUMNS.items()},
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


def cells(measures: Measures, *, missing: str = "-") -> list[str]:
    """The measures as text, in the order of the table; `missing` stands for nan."""
    values = dataclasses.asdict(measures)
    return [
        missing if math.isnan(values[field]) else format(values[field], form)
        for field, (_, form, _) in _COLUMNS.items()
    ]


def _markdown(
    about: Mapping[str, Any],
    prompts: Sequence[str],
    rows: Mapping[str, Continuations],
    measures: Mapping[str, Measures],
    findings: Sequence[str],
) -> str:
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
        f"| strategy | {' | '.join(_HEADERS)} |",
        f"| --- |{' ---: |' * len(_HEADERS)}",
        *(f"| {name} | {' | '.join(cells(m))} |" for name, m in measures.items()),
        "",
        *(f"- {finding}" for finding in findings),
        "",
        "![Fluency against diversity](decoding.png)",
        "",
        "Columns:",
        "",
        *(f"- {header}: {text}" for header, _, text in _COLUMNS.values()),
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
    """Escape a model's text, so that nothing in it is Markdown or HTML."""
    text = re.sub(r"([\\`*_\[\]#|~])", r"\\\1", html.escape(text.strip(), quote=False))
    return text.replace("\n", "<br>")


def _save_plot(out: Path, measures: Mapping[str, Measures], title: str) -> None:
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    rcParams["svg.hashsalt"] = "decoding"  # the same file for the same figures
    figure = Figure(figsize=(7.2, 4), layout="constrained")
    axes = figure.subplots()
    plot(axes, measures)
    axes.set_title(title)
    axes.grid(alpha=0.25, lw=0.5)
    for kind, metadata in (("png", None), ("svg", {"Date": None})):
        with atomic_write(out / f"decoding.{kind}") as file:
            figure.savefig(file, format=kind, dpi=150, metadata=metadata)
