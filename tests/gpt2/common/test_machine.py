"""What a process may use of its machine, and how it shows its progress."""

import os

import pytest
import torch

from gpt2.common import cpu, progress
from gpt2.common.devices import device_memory
from gpt2.common.distributed import world

GIB = 1 << 30
UNLIMITED = (1 << 63) - 4096  # what version 1 says


@pytest.mark.parametrize(
    ("own", "files", "memory", "cores"),
    [
        ("0::/", {"memory.max": "max", "cpu.max": "max 100000"}, None, 8),
        ("0::/", {"memory.max": f"{GIB}", "cpu.max": "150000 100000"}, GIB, 2),
        ("0::/a/b", {"a/memory.max": f"{GIB}", "a/b/memory.max": "max"}, GIB, 8),
        ("0::/a", {"a/memory.max": f"{2 * GIB}", "memory.max": f"{GIB}"}, GIB, 8),
        ("4:memory:/a\n0::/", {"memory/a/memory.limit_in_bytes": f"{GIB}"}, GIB, 8),
        # In a container of version 1, its own group is the root, and the path is the host's.
        ("4:memory:/docker/c0", {"memory/memory.limit_in_bytes": f"{GIB}"}, GIB, 8),
        ("4:memory:/", {"memory/memory.limit_in_bytes": f"{UNLIMITED}"}, UNLIMITED, 8),
        ("2:cpu,cpuacct:/", {"cpu,cpuacct/cpu.cfs_quota_us": "-1"}, None, 8),
        (
            "2:cpu,cpuacct:/",
            {"cpu,cpuacct/cpu.cfs_quota_us": "10000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            None,
            1,
        ),
    ],
)
def test_limits_of_control_groups_hold(tmp_path, monkeypatch, own, files, memory, cores):
    for name, text in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    (tmp_path / "own").write_text(f"{own}\n")
    there = device_memory(torch.device("cpu"))
    monkeypatch.setattr(cpu, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(cpu, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    assert (cpu.memory_limit(), cpu.available_cores()) == (memory, cores)
    assert device_memory(torch.device("cpu")) == min(there, memory or there)


@pytest.mark.parametrize(("seconds", "lines"), [(30.0, 0), (0.0, 5)])
def test_progress_in_a_log_file_is_a_line_now_and_then(monkeypatch, capsys, seconds, lines):
    monkeypatch.setattr(progress, "LOG_SECONDS", seconds)
    for _ in progress.progress_bar(True, range(3), unit="step"):
        pass
    said = capsys.readouterr().err
    assert "\r" not in said
    assert len(said.splitlines()) == lines
    assert said.endswith("step/s]\n" if lines else "")


@pytest.mark.parametrize(
    "left",
    [
        {"RANK": "1"},
        {"RANK": "-1", "WORLD_SIZE": "1"},
        {"RANK": "3", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
        {"WORLD_SIZE": "0"},
        {"LOCAL_RANK": "x"},
    ],
    ids=str,
)
def test_a_place_that_there_is_not_is_refused(monkeypatch, left):
    """Any process but rank 0 would neither print nor write a file; the others it waits for."""
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="in the environment is no place among processes: start"):
        world()
