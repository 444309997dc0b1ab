"""The fuzzer in short, with the same examples every time, and the fuzzer itself put to the test."""

import sys
from pathlib import Path

import pytest

from tests.campaigns.fuzz import engine
from tests.campaigns.fuzz.__main__ import Arguments, main
from tests.campaigns.fuzz.engine import Broken, Tally, check, search
from tests.campaigns.fuzz.targets import TARGETS, Target
from tests.campaigns.fuzz.watch import Exceeded, watched

ROOT = Path(__file__).resolve().parents[3]
_EXAMPLES = {"resume": 15, "run": 40, "demo": 20}
_OF_OTHERS = 60


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_files_are_parsed_or_refused(name):
    if name == "parquet":
        pytest.importorskip("pyarrow")
    target = TARGETS[name]
    assert check(target, dict(target.make())), "the example is valid"
    tally = Tally()
    search(name, tally, examples=_EXAMPLES.get(name, _OF_OTHERS), number=1)
    assert not tally.broken, {kind: message for kind, (_, message, _) in tally.broken.items()}
    assert 0 < tally.accepted < tally.tried, "some changes do harm, some none"


def _parse(folder: Path) -> None:
    """A parser with four faults, each on its own kind of damage."""
    content = (folder / "a.json").read_bytes()
    if content.startswith(b"{"):
        raise KeyError("text")
    if len(content) > 500:
        bytearray(1 << 40)
    if b"\0" in content:
        raise ValueError("no good")
    if b"null" in content:
        while True:
            pass
    if len(content) == 1:
        raise ValueError(f"{folder / 'a.json'} is no good" * 100)
    raise ValueError(f"{folder / 'a.json'} is no good")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"{}", "KeyError at test_fuzz.py:_parse"),
        (b"[" * 501, "MemoryError at test_fuzz.py:_parse"),
        (b"\0\0", "a message that names no file: no good"),
        (b"null", "Exceeded at .*: took more than 0.2 s of processor time"),
        (b"1", "a message of many lines"),
        (b"12", None),
    ],
)
def test_each_fault_of_a_parser_is_found(monkeypatch, content, fault):
    monkeypatch.setattr(engine, "watched", lambda: watched(seconds=0.2))
    target = Target(lambda: {"a.json": b"[]"}, _parse)
    if fault is None:
        assert not check(target, {"a.json": content})
    else:
        with pytest.raises(Broken, match=fault):
            check(target, {"a.json": content})


def test_memory_is_measured_at_its_peak():
    if sys.platform != "linux":
        pytest.skip("reads /proc")
    with (
        pytest.raises(Exceeded, match=r"used \d+ MiB of memory, more than 20"),
        watched(memory=20 << 20),
    ):
        bytes(40 << 20).hex()
    with watched(memory=20 << 20):
        bytes(1 << 20).hex()


def test_what_breaks_is_made_small_saved_and_can_be_tried_again(monkeypatch, tmp_path, capsys):
    def parse(folder: Path) -> None:
        if (folder / "a.txt").read_bytes().count(b"x") != 3:
            raise LookupError

    monkeypatch.setattr("tests.campaigns.fuzz.__main__._ROUND", 10)
    monkeypatch.setitem(TARGETS, "planted", Target(lambda: {"a.txt": b"axbxc\nx"}, parse))
    with pytest.raises(SystemExit) as end:
        main(Arguments(minutes=0.001, only="planted", out=str(tmp_path / "out")))
    assert end.value.code == 1
    said = capsys.readouterr().out
    assert "BROKEN: LookupError at test_fuzz.py:parse" in said
    assert (tmp_path / "out/planted-1.txt").read_text().startswith("LookupError")
    with pytest.raises(Broken, match="LookupError"):
        main(Arguments(replay=str(tmp_path / "out/planted-1")))
    monkeypatch.setitem(TARGETS, "planted", Target(dict, lambda folder: None))
    main(Arguments(replay=str(tmp_path / "out/planted-1")))
    assert "planted-1: parsed" in capsys.readouterr().out


def test_atheris_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "atheris", None)
    with pytest.raises(ValueError, match=r"pip install atheris\. Without it: --engine hypothesis"):
        main(Arguments(engine="atheris", only="tokenizer-pair"))
