"""The fuzz campaign in short, with the same examples every time, and planted broken readers."""

import mmap
import sys
import time
from pathlib import Path

import pytest

from tests.campaigns import search
from tests.campaigns.fuzz import engine
from tests.campaigns.fuzz.engine import Broken, check, fuzz
from tests.campaigns.fuzz.targets import TARGETS, Target
from tests.campaigns.fuzz.watch import Exceeded, watched
from tests.campaigns.options import Budget


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_files_are_parsed_or_refused(name):
    if name in ("parquet", "arrow"):
        pytest.importorskip("pyarrow")
    target = TARGETS[name]
    assert check(target, dict(target.make())), "the example is valid"
    found = fuzz(name, Budget(engine.SHORT[name], None), seed=1)
    assert not found.failures, "\n".join(found.failures)
    assert 0 < found.accepted < found.tried, "some changes do harm, some none"


def _parse(folder: Path) -> None:
    """Parse a file, with a fault for each of several contents."""
    content = (folder / "a.json").read_bytes()
    if content.startswith(b"{"):
        raise KeyError("text")
    if len(content) > 500:
        bytearray(128 << 20)
    if b"\0" in content:
        raise ValueError("no good")
    if b"null" in content:
        end = time.process_time() + 2
        while time.process_time() < end:
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
    ],
)
def test_each_fault_of_a_reader_is_found(monkeypatch, content, fault):
    monkeypatch.setattr(engine, "watched", lambda: watched(seconds=0.2, asked=64 << 20))
    target = Target(lambda: {"a.json": b"[]"}, _parse)
    with pytest.raises(Broken, match=fault):
        check(target, {"a.json": content})
    assert not check(target, {"a.json": b"12"}), "refused as it should be"


def _touch(size: int) -> None:
    """Use memory from the system: what the heap keeps of earlier objects is resident already."""
    with mmap.mmap(-1, size) as block:
        for page in range(0, size, mmap.PAGESIZE):
            block[page] = 1


def test_memory_is_measured_at_its_peak():
    if sys.platform != "linux":
        pytest.skip("the peak of the resident memory can be forgotten on Linux only")
    exceeded = pytest.raises(Exceeded, match=r"used \d+ MiB of memory, more than 4")
    with exceeded, watched(memory=4 << 20):
        _touch(8 << 20)
    with watched(memory=4 << 20):
        bytes(1 << 18).hex()


def test_each_cause_is_reported_made_small_and_tried_again_first(monkeypatch, tmp_path):
    def parse(folder: Path) -> None:
        length = len((folder / "a.txt").read_bytes())
        if length > 7:
            raise LookupError
        if length < 7:
            raise KeyError

    monkeypatch.setattr(search, "DATABASE", tmp_path)
    monkeypatch.setitem(TARGETS, "planted", Target(lambda: {"a.txt": b"axbxc\nx"}, parse))
    failures = fuzz("planted", Budget(10, None), seed=1).failures
    assert len(failures) == 2
    assert any("LookupError at test_fuzz.py:parse" in failure for failure in failures)
    assert all("a.txt: b'" in failure or "a.txt is missing" in failure for failure in failures)
    again = fuzz("planted", Budget(1, None), seed=2).failures
    assert len(again) == 2, "from the database"
