"""JSON read from files of unknown origin: what is asked for, or a ValueError that names the file.

content = read_json(path)                       # of any kind
config = from_json(GPTConfig, content["model"]) # a dataclass, each entry of its declared type
"""

import dataclasses
import json
import math
import reprlib
import types
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import (
    Any,
    Literal,
    TypeGuard,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from gpt2.common.files import read_bytes

MAX_BYTES = 1 << 27  # the largest vocabularies take a tenth of this
_LARGEST = 1e50  # beyond it, arithmetic with a few numbers might overflow

T = TypeVar("T")


def read_json(path: Path) -> Any:
    """The content of a UTF-8 JSON file.

    Raises:
        ValueError: there is no such file, it is not JSON, too deeply nested or too large.
    """
    text = read_bytes(path, limit=MAX_BYTES)
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """`read_json` for a file that must hold an object."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}, not an object")
    return content


def parse_json(text: bytes) -> Any:
    """The value of a UTF-8 JSON text; ValueError for what is none, also for too deep a nesting."""
    try:
        return json.loads(text.decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def from_json(kind: type[T], content: Any, *, others: bool = False, finite: bool = True) -> T:
    """A dataclass from a JSON object, each entry of the type that its field declares.

    Args:
        kind: the dataclass; fields may be int, float, str, bool, None, Literal, Any, lists, tuples
            and dicts of these, other dataclasses, and unions.
        content: the object; whole numbers stand for floats too.
        others: whether to leave out entries that are no fields, instead of refusing them.
        finite: whether to refuse floats that are not finite.

    Raises:
        ValueError: an entry that is missing, unknown or of another type; its name is given.
    """
    thing: T = _Reader(others, finite).dataclass(kind, content)
    return thing


def typed(value: Any, hint: Any) -> Any:
    """A JSON value as the type `hint`, one that `from_json` knows; ValueError if it is none."""
    return _Reader(others=False, finite=True).typed(value, hint)


@dataclass(frozen=True)
class _Reader:
    """The options of `from_json`."""

    others: bool
    finite: bool

    def dataclass(self, kind: Any, content: Any) -> Any:
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__} where an object should be")
        fields = dataclasses.fields(kind)
        unknown = content.keys() - {field.name for field in fields}
        if unknown and not self.others:
            raise ValueError(f"unknown entry {min(unknown)!r:.100}")
        hints = get_type_hints(kind)
        values = {}
        for field in fields:
            if field.name in content:
                try:
                    values[field.name] = self.typed(content[field.name], hints[field.name])
                except ValueError as error:
                    raise ValueError(f"{field.name}: {error}") from None
            elif field.default is field.default_factory is dataclasses.MISSING:
                raise ValueError(f"no entry {field.name!r}")
        return kind(**values)

    def typed(self, value: Any, hint: Any) -> Any:
        origin, inner = get_origin(hint), get_args(hint)
        if hint is Any:
            return value
        if origin in (Union, types.UnionType):
            return self._by_any(value, inner)
        if origin is Literal and any(value == one and type(value) is type(one) for one in inner):
            return value
        if dataclasses.is_dataclass(hint):
            return self.dataclass(hint, value)
        if origin is list and isinstance(value, list):
            return [self.typed(item, inner[0]) for item in value]
        if origin is tuple and isinstance(value, list) and len(value) == len(inner):
            return tuple(self.typed(item, one) for item, one in zip(value, inner, strict=True))
        if origin in (dict, Mapping) and isinstance(value, dict):
            return {self.typed(k, inner[0]): self.typed(v, inner[1]) for k, v in value.items()}
        if hint is float and is_number(value, finite=self.finite):
            return float(value)
        if hint is int and type(value) is int and is_number(value):
            return value
        if hint is str and type(value) is str:
            value.encode("utf-8")  # half a surrogate pair is a UnicodeEncodeError, a ValueError
            return value
        if hint in (bool, types.NoneType) and type(value) is hint:
            return value
        raise ValueError(f"{reprlib.repr(value)} is no {_name(hint)}")

    def _by_any(self, value: Any, hints: tuple[Any, ...]) -> Any:
        for hint in hints:
            with suppress(ValueError):
                return self.typed(value, hint)
        raise ValueError(f"{reprlib.repr(value)} is none of {', '.join(map(_name, hints))}")


def _name(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " | ".join(map(repr, get_args(hint)))
    return "null" if hint is types.NoneType else getattr(hint, "__name__", str(hint))


def is_number(value: Any, *, finite: bool = True) -> TypeGuard[int | float]:
    """Whether a JSON value is a number (true and false are none) that arithmetic can take."""
    if type(value) not in (int, float):
        return False
    if type(value) is float and not math.isfinite(value):
        return not finite
    return abs(value) < _LARGEST
