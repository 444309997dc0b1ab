"""bench.gpu_check: a part that fails or hangs keeps no other from running, and all is reported."""

import contextlib
import json
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from bench import gpu_check
from bench.gpu_check import ROOT, SECONDS, main
from tests.gpt2.stand_ins import run_python

FORKS = """
import os, pathlib, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
pathlib.Path(sys.argv[1]).write_text(str(child.pid))
print("begun")
child.wait()
"""


def _runs(file: Path) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        child = psutil.Process(int(file.read_text()))
        for _ in range(100):  # what was killed takes a moment to end
            if child.status() == psutil.STATUS_ZOMBIE:
                return False
            time.sleep(0.05)
        return True
    return False


def test_a_part_that_fails_or_hangs_keeps_no_other_from_running(tmp_path, monkeypatch, capsys):
    allowances = {}

    def command(part: str, out: Path, seconds: float, *, dry_run: bool) -> list[str]:
        allowances[part] = seconds
        return {
            "fails": ["-c", "raise SystemExit('planted')"],
            "hangs": ["-c", FORKS, str(out / "pid")],
            "works": ["-c", "print('done')"],
        }[part]

    monkeypatch.setattr(gpu_check, "command", command)
    monkeypatch.setattr(gpu_check, "SECONDS", {"fails": 5, "hangs": 3, "works": 10})
    assert main(tmp_path) == 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert [(part["status"], part["last"]) for part in report] == [
        ("failed", "planted"), ("out of time", "begun"), ("ok", "done"),
    ]  # fmt: skip
    assert 3 < allowances["hangs"] < 8, "the time that a part leaves goes to the next"
    printed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert printed == ["fails", "hangs", "works"]
    assert not _runs(tmp_path / "pid")


def test_a_signal_ends_the_children_of_the_part(tmp_path):
    python, pid = tmp_path / "python", tmp_path / "pid"
    python.write_text(f"#!/bin/sh\nsleep 60 &\necho $! > {pid}.new\nmv {pid}.new {pid}\nwait\n")
    python.chmod(0o755)
    start = "import runpy, sys; sys.executable = sys.argv.pop(1); "
    start += "runpy.run_module('bench.gpu_check', run_name='__main__', alter_sys=True)"
    words = [str(python), "--dry-run", "--out", str(tmp_path / "run")]
    process = subprocess.Popen([sys.executable, "-c", start, *words], cwd=ROOT)
    while not pid.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.terminate()
    assert process.wait(10) == 128 + signal.SIGTERM
    assert not _runs(pid)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
@pytest.mark.parametrize(
    ("words", "message"), [([], "--dry-run needs none"), (["--dry-run"], "is not empty")]
)
def test_what_cannot_work_is_refused(words, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "report.json").write_text("[]")
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--out", str(tmp_path), *words])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(gpu_check.__file__, run_name="__main__")
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_dry_run_goes_through_every_part(tmp_path):
    words = ["-m", "bench.gpu_check", "--out", str(tmp_path / "run"), "--dry-run"]
    done = run_python(*words, timeout=None)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert [part["part"] for part in report] == list(SECONDS)
    assert list((tmp_path / "run/plots").glob("*.png"))
    assert sum(SECONDS.values()) < 9 * 60
