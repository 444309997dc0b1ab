"""gpt2.common.files: a file is whole or absent, whatever happens while it is written."""

import errno
import hashlib
import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest

from gpt2.common.files import atomic_write, lock, remove_leftovers, sha256_file, write_json


def test_atomic_write_replaces_the_file_only_at_the_end(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    mode = path.stat().st_mode
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode == mode  # the usual permissions
    assert os.listdir(tmp_path) == ["a.bin"]


def test_atomic_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def full_disk(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"), atomic_write(path) as file:
        file.write(b"half")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_leftovers_of_a_killed_writer_are_removed_and_nothing_else(tmp_path):
    for name in (".a.bin.0123abcd.tmp", "a.bin", ".lock", "notes.tmp"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".lock", "a.bin", "notes.tmp"]


def test_sha256_from_an_offset_over_several_blocks(tmp_path):
    content = os.urandom((2 << 20) + 17)
    (tmp_path / "a").write_bytes(content)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    assert sha256_file(tmp_path / "a", start=256) == hashlib.sha256(content[256:]).hexdigest()


def test_write_json_keeps_other_scripts_readable(tmp_path):
    write_json(tmp_path / "a.json", {"name": "\u017dofia"})
    assert "\u017dofia" in (tmp_path / "a.json").read_text(encoding="utf-8")


def _hold(path: Path, seconds: float, ready: "multiprocessing.synchronize.Event") -> None:
    with lock(path):
        ready.set()
        time.sleep(seconds)


def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl", reason="Windows has no flock")

    def flock(*_: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(ValueError, match=r"no locks .* another one"), lock(tmp_path / ".lock"):
        pass


def test_lock_excludes_other_processes_and_dies_with_its_holder(tmp_path, capsys):
    path = tmp_path / ".lock"
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(path, 60, ready))
    holder.start()
    try:
        assert ready.wait(30)
        with pytest.raises(TimeoutError), lock(path):
            pass
        threading.Timer(0.2, holder.kill).start()
        with lock(path, waiting="held"):
            pass
        assert capsys.readouterr().out == "held\n"
    finally:
        holder.kill()
