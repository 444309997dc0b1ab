"""Threads sleep while the machine is busy, and spin again when it is not."""

import os
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gpt2.common import load
from tests.gpt2.stand_ins import run_python

# Threads that sleep give up their cores in most parallel regions; those that spin seldom do.
_SWITCHES = """
import os, resource, subprocess, sys, time
for name in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS"):
    os.environ.pop(name, None)
os.environ.update(pair.split("=") for pair in sys.argv[1:])
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
import torch
from gpt2.common.load import sleeping_under_load

x = torch.zeros(1 << 17)

def switches(seconds=1.0):
    began, regions = time.monotonic(), 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
    while time.monotonic() - began < seconds:
        x.add_(1)
        regions += 1
    return (resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before) / regions

others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
try:
    spinning = switches()
    with sleeping_under_load():
        switches()  # until the load is seen
        print(spinning, switches())
finally:
    for other in others:
        other.kill()
"""


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs two cores and Linux",
)
@pytest.mark.parametrize("choice", [None, "GOMP_SPINCOUNT=300000"])
def test_threads_sleep_beside_busy_processes_unless_the_user_chose(choice):
    done = run_python("-c", _SWITCHES, *filter(None, [choice]))
    before, under_load = map(float, done.stdout.split())
    assert (under_load > before + 0.3) == (choice is None), done.stdout
    assert done.stderr.count("the CPU was busy: for ") == (choice is None)


_EXIT = """
import os
for name in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS"):
    os.environ.pop(name, None)
import torch
from gpt2.common import load

torch.set_num_threads(2)
load.BUSY, load.LOOK = -1.0, 0.0
with load.sleeping_under_load():
    pass
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux")
def test_a_process_may_end_while_the_teams_begin():
    done = run_python("-c", _EXIT)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("libraries", "environment", "threads", "watched"),
    [
        ("/torch/lib/libgomp.so.1", {}, 2, True),
        ("/torch/lib/libgomp.so.1", {"OMP_WAIT_POLICY": "active"}, 2, False),
        ("/torch/lib/libgomp.so.1", {"GOMP_SPINCOUNT": "7"}, 2, False),
        ("/torch/lib/libgomp.so.1", {}, 1, False),
        ("/torch/lib/libomp.so", {}, 2, False),
        (None, {}, 2, False),  # macOS, Windows
    ],
)
def test_only_libgomp_is_watched_and_the_choice_of_the_user_respected(
    tmp_path, monkeypatch, libraries, environment, threads, watched
):
    if libraries:
        (tmp_path / "maps").write_text(f"7f00-7fff r-xp 00000000 08:01 42 {libraries}\n")
    for name in load.CHOICES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    called = threading.Event()
    monkeypatch.setattr(load, "_PROCESS", tmp_path)
    monkeypatch.setattr(load, "_watch", lambda end, threads: called.set())
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    with load.sleeping_under_load():
        assert called.wait(30 if watched else 0) == watched
    called.clear()
    monkeypatch.delitem(sys.modules, "torch")
    with load.sleeping_under_load():
        assert not called.is_set()


@pytest.mark.parametrize(("share", "times"), [(0.3, 4), (0.05, 0)])
def test_threads_spin_again_now_and_then_and_it_is_said_at_the_end(
    monkeypatch, capsys, share, times
):
    teams, now, end = [], [0.0], threading.Event()

    def wait(seconds):
        now[0] += seconds
        if now[0] > 4 * (load.LOOK + load.SLEEP) - 1:
            end.set()

    monkeypatch.setattr(end, "wait", wait)
    monkeypatch.setattr(load, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(load, "_waited", lambda: 2 * share * now[0])
    monkeypatch.setattr(load, "_idle_teams", lambda _: teams.append(nullcontext()) or teams[-1])
    load._watch(end, 2)
    assert len(teams) == times
    assert capsys.readouterr().err.count("the CPU was busy: for 32 seconds") == (times > 0)
