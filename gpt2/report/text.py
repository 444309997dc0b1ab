"""Sentences with formulas in them, and numbers as a reader wants them."""

import math
import re
from string import Formatter
from typing import Any

# A formula as {"typst", "latex"}, or a piece of code as {"code"}.
Special = dict[str, str]
Spans = list[str | Special]
_SPECIAL = re.compile(r"\$(?P<maths>[^$]+)\$|`(?P<code>[^`]+)`")


def rich(template: str, **values: Any) -> Spans:
    """A sentence of ours: maths between dollar signs, code in backticks, `{name}` for a value.

    Maths is written once where Typst and LaTeX agree, else as "typst|latex"; ~ is a space where no
    line breaks. Values go into the plain parts after these are told apart: whatever they hold stays
    text, unless it is maths itself (see `scientific`).
    """
    spans: Spans = []
    place = 0
    for match in _SPECIAL.finditer(template):
        spans += _filled(template[place : match.start()], values)
        if match["maths"]:
            typst, _, latex = match["maths"].partition("|")
            spans.append({"typst": typst, "latex": latex or typst})
        else:
            spans.append({"code": match["code"]})
        place = match.end()
    return _joined(spans + _filled(template[place:], values))


def plain(spans: Spans) -> str:
    """The words of a sentence, its maths in LaTeX."""
    return "".join(s if isinstance(s, str) else s.get("code", f"${s.get('latex')}$") for s in spans)


def duration(seconds: float) -> str:
    """27 s, 4.5 min, 3.2 h, 2.1 days."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    for unit, length in (("min", 60), ("h", 3600)):
        if seconds < 100 * length:
            return f"{_three_digits(seconds / length)} {unit}"
    return f"{_three_digits(seconds / 86400)} days"


def in_words(count: float) -> str:
    """205 thousand, 2.59 million, 12.2 billion."""
    for unit, name in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if count >= unit:
            return f"{_three_digits(count / unit)} {name}"
    return f"{count:.0f}"


def number(value: float, form: str) -> str:
    """A number in a table; a dash for nan."""
    return "\u2013" if math.isnan(value) else format(value, form)


def share(value: float) -> str:
    """0.345 as 34%."""
    return number(value, ".0%")


def milliseconds(seconds: float) -> str:
    """Three digits, without the unit."""
    return f"{seconds * 1e3:.3g}"


def scientific(value: float) -> Special:
    """3.3e12 as maths, 3.3 times 10 to the 12th; 1e-5 as the bare power."""
    exponent = math.floor(math.log10(value))
    factor = f"{value / 10**exponent:.1f}"
    before = ("", "") if factor == "1.0" else (f"{factor} times ", rf"{factor} \times ")
    return {"typst": f"{before[0]}10^({exponent})", "latex": f"{before[1]}10^{{{exponent}}}"}


def _three_digits(value: float) -> str:
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{digits}f}"


def _filled(part: str, values: dict[str, Any]) -> Spans:
    spans: Spans = []
    for words, name, form, _ in Formatter().parse(part):
        spans.append(words.replace("'", "\u2019").replace("~", "\u00a0"))
        if name is not None:
            value = values[name]
            spans.append(value if isinstance(value, dict) else format(value, form or ""))
    return spans


def _joined(spans: Spans) -> Spans:
    """Neighbouring strings made one, empty ones left out."""
    joined: Spans = []
    for span in spans:
        if isinstance(span, str) and joined and isinstance(joined[-1], str):
            joined[-1] += span
        elif span:
            joined.append(span)
    return joined
