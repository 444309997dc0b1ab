"""The content of a report as Markdown with LaTeX maths, as GitHub shows it."""

import re
from collections.abc import Sequence
from typing import Any

from gpt2.report.text import Spans

_SPECIAL = re.compile(r"([\\`*_\[\]<>#|$~])")


def to_markdown(content: dict[str, Any], *, figures: str) -> str:
    """The report as Markdown.

    Args:
        content: see content.py.
        figures: the folder of the figures, relative to the file.
    """
    writer = _Writer(figures)
    byline = " \u00b7 ".join(_line(content[key]) for key in ("author", "date") if content[key])
    parts = [f"# {_line(content['title'])}", byline, _cell(content["abstract"])]
    number = 0
    for section in content["sections"]:
        number += section["numbered"]
        label = f"{number}. " if section["numbered"] else ""
        parts.append(f"## {label}{_line(section['title'])}")
        parts += [getattr(writer, block["kind"])(block) for block in section["blocks"]]
    return "\n\n".join(parts) + "\n"


class _Writer:
    """A method for each kind of block; they count equations, tables and figures."""

    def __init__(self, figures: str) -> None:
        self.folder = figures
        self.equations = self.tables = self.figures = 0

    def paragraph(self, block: dict[str, Any]) -> str:
        return _lead(block["lead"]) + _cell(block["text"])

    def formula(self, block: dict[str, Any]) -> str:
        self.equations += 1
        return (
            f"{_lead(block['name'])}{_cell(block['text'])}\n\n"
            f"$$\n{block['latex']} \\tag{{{self.equations}}}\n$$"
        )

    def pairs(self, block: dict[str, Any]) -> str:
        return self._table(block["caption"], ["setting", "value"], block["rows"])

    def table(self, block: dict[str, Any]) -> str:
        return self._table(block["caption"], block["head"], block["rows"])

    def figure(self, block: dict[str, Any]) -> str:
        self.figures += 1
        image = f"![{_line(block['alt'])}]({self.folder}/{block['file']})"
        return f"{image}\n\n*Figure {self.figures}:* {_cell(block['caption'])}"

    def samples(self, block: dict[str, Any]) -> str:
        parts = [f"**Prompt**\n\n{_fenced(block['prompt'])}"]
        for item in block["items"]:
            parts.append(f"**{_line(item['name'])}**\n\n{_fenced(item['text'])}")
        return "\n\n".join(parts)

    def bullets(self, block: dict[str, Any]) -> str:
        return f"{_lead(block['lead'])}\n\n" + _bullets(block["items"])

    def references(self, block: dict[str, Any]) -> str:
        return _bullets(block["items"])

    def _table(self, caption: Spans, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
        self.tables += 1
        lines = [head, ["---", *["---:"] * (len(head) - 1)]]
        table = [" | ".join(line) for line in lines]
        table += [" | ".join(_cell(cell) for cell in row) for row in rows]
        lines_of_table = "\n".join(f"| {line} |" for line in table)
        return f"*Table {self.tables}:* {_cell(caption)}\n\n{lines_of_table}"


def _lead(words: str) -> str:
    return f"**{_line(words)}.** " if words else ""


def _bullets(items: Sequence[str | Spans]) -> str:
    return "\n".join(f"- {_cell(item)}" for item in items)


def _cell(spans: str | Spans) -> str:
    """A string or spans as one line."""
    if isinstance(spans, str):
        return _line(spans)
    parts = []
    for span in spans:
        if isinstance(span, str):
            parts.append(_line(span, strip=False))
        else:
            parts.append(f"`{span['code']}`" if "code" in span else f"${span['latex']}$")
    return "".join(parts)


def _line(text: str, *, strip: bool = True) -> str:
    """Text as it is, on one line: nothing in it is markup."""
    one = re.sub(r"[\r\n]+", " ", text)
    return _SPECIAL.sub(r"\\\1", one.strip() if strip else one)


def _fenced(text: str) -> str:
    """Text of any kind, unchanged, between fences longer than any in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
