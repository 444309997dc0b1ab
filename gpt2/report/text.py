"""Numbers in words, for sentences and tables, and a change of all values in JSON."""

import math
from collections.abc import Callable, Mapping
from typing import Any


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


def percent(value: float) -> str:
    """0.345 as 34%; a dash for nan."""
    return "\u2013" if math.isnan(value) else f"{value:.0%}"


def _three_digits(value: float) -> str:
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{digits}f}"


def mapped(node: Any, change: Callable[[Any], Any]) -> Any:
    """Copy nested mappings and lists with every value in them changed."""
    if isinstance(node, Mapping):
        return {key: mapped(value, change) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [mapped(value, change) for value in node]
    return change(node)
