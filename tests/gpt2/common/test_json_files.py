"""JSON of unknown origin: of the declared types, or a ValueError that says what is wrong."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from gpt2.common import json_files
from gpt2.common.json_files import from_json, is_number, read_json, read_json_object


@dataclass(frozen=True)
class Inner:
    x: int


@dataclass(frozen=True)
class Outer:
    whole: int
    real: float
    text: str | None
    word: Literal["a", "b"]
    inner: Inner
    pairs: list[tuple[int, float]]
    table: Mapping[str, bool]
    anything: Any = None
    more: list[str] = field(default_factory=list)


GOOD = {
    "whole": 3, "real": 2, "text": None, "word": "b", "inner": {"x": 1}, "pairs": [[1, 2.5]],
    "table": {"k": True},
}  # fmt: skip


def test_an_object_becomes_a_dataclass():
    got = from_json(Outer, GOOD)
    assert got == Outer(3, 2.0, None, "b", Inner(1), [(1, 2.5)], {"k": True})
    assert type(got.real) is float


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"whole": 3.0}, "whole: 3.0 is no int"),
        ({"whole": True}, "whole: True is no int"),
        ({"whole": 10**60}, "whole: 1000.* is no int"),
        ({"real": math.nan}, "real: nan is no float"),
        ({"real": False}, "real: False is no float"),
        ({"text": 1}, "text: 1 is none of str, null"),
        ({"text": "\ud800"}, "text: .* is none of str, null"),
        ({"word": "c"}, "word: 'c' is no 'a' | 'b'"),
        ({"inner": {"x": "1"}}, "inner: x: '1' is no int"),
        ({"inner": {"x": 1, "y": 2}}, "inner: unknown entry 'y'"),
        ({"inner": [1]}, "inner: a list where an object should be"),
        ({"pairs": [[1]]}, r"pairs: \[1\] is no tuple"),
        ({"table": {"k": 1}}, "table: 1 is no bool"),
        ({"table": {"\ud800": True}}, "table: 'utf-8' codec"),
        ({"stray": 1}, "unknown entry 'stray'"),
        ({"more": None}, "more: None is no list"),
    ],
)
def test_what_is_of_another_type_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        from_json(Outer, GOOD | change)


def test_what_is_missing_is_named_and_what_is_unknown_may_be_left_out():
    with pytest.raises(ValueError, match="no entry 'whole'"):
        from_json(Outer, {k: v for k, v in GOOD.items() if k != "whole"})
    assert from_json(Outer, GOOD | {"stray": 1, "inner": {"x": 1, "y": 2}}, others=True)
    assert from_json(Outer, GOOD | {"real": math.inf}, finite=False).real == math.inf


def test_numbers_are_those_that_arithmetic_takes():
    assert [v for v in (0, -1.5, 10**40) if is_number(v)] == [0, -1.5, 10**40]
    assert not any(map(is_number, (True, None, "1", math.nan, math.inf, 10**60, 1e300)))
    assert from_json(list[int], [1, 2]) == [1, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "cannot be read as JSON: Expecting"),
        (b"\xff", "cannot be read as JSON: 'utf-8' codec"),
        (b"[" * 100_000, "cannot be read as JSON: nested too deeply"),
        (b"1" * 5000, "cannot be read as JSON: Exceeds the limit"),
        (b"[1]", "holds a JSON list, not an object"),
        (b'{"a": "' + b"x" * 2000 + b'"}', "has more than 1,000 bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_json_is_said_with_the_file(tmp_path, monkeypatch, content, message):
    monkeypatch.setattr(json_files, "MAX_BYTES", 1000 if b"xx" in content else 1 << 20)
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.json {message}"):
        read_json_object(path)


def test_only_files_are_read(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere", Path("/dev/zero")):
        with pytest.raises(ValueError, match="there is no such file"):
            read_json(path)
    (tmp_path / "a.json").write_text(json.dumps(GOOD))
    assert read_json(tmp_path / "a.json") == GOOD
