"""A comparison of sizes as JSON, as Markdown, and as a table for a terminal."""

import dataclasses
import re
from pathlib import Path

from gpt2.common.devices import human_bytes
from gpt2.common.files import atomic_write, write_json
from gpt2.compare_decoding.report import in_columns
from gpt2.compare_sizes.results import Comparison, Row

FILES = ("sizes.json", "sizes.md")
_HEAD = (
    "size", "parameters", "time", "tokens/s", "memory", "FLOPs",
    "val loss", "test loss", "perplexity", "bits/byte",
)  # fmt: skip


def table(comparison: Comparison) -> str:
    """The figures in columns, for a terminal."""
    return in_columns([_HEAD, *map(_cells, comparison.rows)])


def _cells(row: Row) -> list[str]:
    memory = row.peak_memory_bytes
    return [
        row.name,
        f"{row.parameters:,}",
        _duration(row.seconds),
        f"{row.tokens_per_s:,.0f}",
        "-" if memory is None else human_bytes(memory),
        f"{row.flops:.2e}",
        f"{row.val_loss:.4f}",
        f"{row.test_loss:.4f}",
        f"{row.test_perplexity:.2f}",
        f"{row.test_bits_per_byte:.4f}",
    ]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def write(out: Path, comparison: Comparison) -> None:
    """Write `out`/sizes.json and `out`/sizes.md."""
    write_json(out / FILES[0], dataclasses.asdict(comparison))
    with atomic_write(out / FILES[1]) as file:
        file.write(_markdown(comparison).encode("utf-8", errors="replace"))


def _markdown(c: Comparison) -> str:
    rule = "| --- |" + " ---: |" * (len(_HEAD) - 1)
    rows = [f"| {' | '.join(cells)} |" for cells in (_HEAD, *map(_cells, c.rows))]
    parts = [
        f"# Sizes compared on {_plain(c.data)}",
        f"Each size was trained on {c.tokens:,} tokens in steps of {c.tokens_per_step:,}, with "
        f"context {c.context}, one vocabulary of {c.vocab_size:,} tokens and {c.optimizer}, on "
        f"{c.device}. Peak learning rates: "
        + ", ".join(f"{row.name} {row.lr:.3g}" for row in c.rows)
        + ".",
        "\n".join([rows[0], rule, *rows[1:]]),
        f"Time is that of training steps alone. Memory: {c.memory}, at its peak. FLOPs: {c.flops}. "
        f"Losses are nats per token, of the weights with the lowest validation loss; test: {c.test}"
        ".",
        "![Validation loss against tokens](loss_tokens.svg)",
        "![Validation loss against compute](loss_compute.svg)",
        f"## Samples\n\nBy {c.sampling}. The prompt is in bold.",
    ]
    for prompt in c.rows[0].samples:
        parts += [f"{row.name}:\n\n{_quote(prompt, row.samples[prompt])}" for row in c.rows]
    return "\n\n".join(parts) + "\n"


def _quote(prompt: str, text: str) -> str:
    start = f"**{_plain(' '.join(prompt.split()))}**" if prompt.strip() else ""
    # Indented lines would be code.
    return "\n".join(f"> {line.strip()}" for line in f"{start}{_plain(text)}".split("\n"))


def _plain(text: str) -> str:
    """A text of which Markdown makes nothing but itself."""
    text = re.sub(r"([\\`*_\[\]<>&|~$])", r"\\\1", text)
    return re.sub(r"(?m)^(\s*\d*)([-#+=.)])", r"\1\\\2", text)  # headings and lists
