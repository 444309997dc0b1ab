"""The blocks that the sections of a report consist of: plain JSON, for Typst and Markdown alike.

A text is a string or `Spans`; nothing in it is markup but the maths of `Spans`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from gpt2.report.formulas import Formula
from gpt2.report.text import Spans

Block = dict[str, Any]
Text = str | Spans


def paragraph(text: Text, *, lead: str = "") -> Block:
    """A paragraph; `lead` stands before it in bold."""
    return {"kind": "paragraph", "lead": lead, "text": text}


def formula(what: Formula) -> Block:
    """A numbered equation after its paragraph."""
    return {"kind": "formula", **dataclasses.asdict(what)}


def pairs(caption: Text, rows: Sequence[tuple[Text, Text]], *, columns: int = 3) -> Block:
    """A table of names and values, in several columns where there is room."""
    return {"kind": "pairs", "caption": caption, "columns": columns, "rows": rows}


def table(
    caption: Text, head: Sequence[str], rows: Sequence[Sequence[Text]], *, wide: bool = False
) -> Block:
    """A table, its first column left-aligned and, if `wide`, of whatever width is left."""
    return {"kind": "table", "caption": caption, "head": head, "rows": rows, "wide": wide}


def figure(file: str, caption: Text, *, alt: str) -> Block:
    """A drawing (see figures.py), as wide as the text."""
    return {"kind": "figure", "file": file, "caption": caption, "alt": alt}


def samples(prompt: str, texts: Mapping[str, str]) -> Block:
    """Continuations of a prompt, each with its name; the PDF cuts them where room is short."""
    items = [{"name": name, "text": text} for name, text in texts.items()]
    return {"kind": "samples", "prompt": prompt, "items": items}


def bullets(lead: str, items: Sequence[Text]) -> Block:
    """A list, under a line in bold."""
    return {"kind": "bullets", "lead": lead, "items": items}


def references(items: Sequence[str]) -> Block:
    return {"kind": "references", "items": items}
