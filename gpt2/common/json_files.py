"""JSON from files of unknown origin: read as given types, or refused with a clear ValueError.

content = read_json(path)                       # of any kind
config = from_json(GPTConfig, content["model"]) # a dataclass, each entry of its declared type
"""

import dataclasses
import functools
import json
import math
import reprlib
import types
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeGuard, TypeVar, Union, get_args, get_origin, get_type_hints

from gpt2.common.files import read_bytes

MAX_BYTES = 1 << 27  # the largest vocabularies take a tenth of this
_LARGEST = 1e50  # beyond it, arithmetic with a few numbers might overflow

T = TypeVar("T")


def read_json(path: Path) -> Any:
    """Read a UTF-8 JSON file; a ValueError if there is none, it is not JSON, or it is too large."""
    text = read_bytes(path, limit=MAX_BYTES)
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that must hold an object."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}, not an object")
    return content


def parse_json(text: bytes) -> Any:
    """The value of a UTF-8 JSON text; a ValueError if it is not JSON or too deeply nested."""
    try:
        return json.loads(text.decode("utf-8-sig"))  # editors on Windows write a mark
    except RecursionError:
        raise ValueError("nested too deeply") from None


def from_json(kind: type[T], content: Any, *, others: bool = False, finite: bool = True) -> T:
    """Check a JSON value against a type, and convert it.

    Args:
        kind: int, float, str, bool, None, Literal, Any; a list, tuple, dict or Mapping of these; a
            dataclass whose fields have such types; or a union.
        content: the value. Whole numbers are accepted as floats, true and false not as numbers.
        others: ignore entries of an object that are no fields of its dataclass.
        finite: refuse floats that are infinite or NaN.

    Raises:
        ValueError: an entry is missing, unknown or of another type. Gives its name.
    """
    hint: Any = kind
    read = functools.partial(from_json, others=others, finite=finite)
    origin, inner = get_origin(hint), get_args(hint)
    value: Any = None
    if dataclasses.is_dataclass(hint):
        value = _dataclass(hint, content, read, others)
    elif origin in (Union, types.UnionType):
        for one in inner:
            with suppress(ValueError):
                return read(one, content)
        raise ValueError(f"{reprlib.repr(content)} is none of {', '.join(map(_name, inner))}")
    elif origin is list and isinstance(content, list):
        value = [read(inner[0], item) for item in content]
    elif origin is tuple and isinstance(content, list) and len(content) == len(inner):
        value = tuple(read(one, item) for one, item in zip(inner, content, strict=True))
    elif origin in (dict, Mapping) and isinstance(content, dict):
        value = {read(inner[0], k): read(inner[1], v) for k, v in content.items()}
    elif hint is float and is_number(content, finite=finite):
        value = float(content)
    elif _is(hint, content):
        value = content
    else:
        raise ValueError(f"{reprlib.repr(content)} is no {_name(hint)}")
    return value


def _dataclass(kind: Any, content: Any, read: Callable[[Any, Any], Any], others: bool) -> Any:
    if not isinstance(content, dict):
        raise ValueError(f"a {type(content).__name__} where an object should be")
    fields = dataclasses.fields(kind)
    unknown = content.keys() - {field.name for field in fields}
    if unknown and not others:
        raise ValueError(f"unknown entry {min(unknown)!r:.100}")
    hints = get_type_hints(kind)
    values = {}
    for field in fields:
        if field.name in content:
            try:
                values[field.name] = read(hints[field.name], content[field.name])
            except ValueError as error:
                raise ValueError(f"{field.name}: {error}") from None
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"no entry {field.name!r}")
    return kind(**values)


def _is(hint: Any, value: Any) -> bool:
    """Return whether a value is of a type that needs no conversion."""
    if get_origin(hint) is Literal:
        return any(value == one and type(value) is type(one) for one in get_args(hint))
    if hint is int:
        return type(value) is int and is_number(value)
    if hint is str and type(value) is str:
        value.encode("utf-8")  # half a surrogate pair is a UnicodeEncodeError, a ValueError
    return hint is Any or (hint in (str, bool, types.NoneType) and type(value) is hint)


def _name(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " | ".join(map(repr, get_args(hint)))
    return "null" if hint is types.NoneType else getattr(hint, "__name__", str(hint))


def is_number(value: Any, *, finite: bool = True) -> TypeGuard[int | float]:
    """Return whether a JSON value is a number (no bool) that arithmetic can take."""
    if type(value) not in (int, float):
        return False
    if type(value) is float and not math.isfinite(value):
        return not finite
    return abs(value) < _LARGEST
