"""A job of several processes, of which one is killed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from gpt2.runs.checkpoint import DamagedCheckpoint, list_checkpoints, load_checkpoint
from tests.campaigns.faults.processes import LOG, PATIENCE, ROOT, helpers, run, survivors
from tests.campaigns.faults.workplace import MODEL, Attempt, Workplace, losses_differ

# Without dropout, whose masks depend on the number of processes.
_SETTINGS = [
    *MODEL,
    *("--dropout", "0", "--optimizer", "adamw", "--steps", "20", "--checkpoint-every", "1"),
]
_BOUND = 60.0  # seconds until all must have stopped: torchrun gives them 30


def killed_of_several(place: Workplace) -> Iterator[Attempt]:
    """The others stop, no half checkpoint is there, and one process alone goes on."""
    status, said = run(place.folder, "train.py", *_SETTINGS, "--out", "alone")
    assert status == 0, said
    while True:
        for mode in ("ddp", "fsdp"):
            shutil.rmtree(place.folder / mode, ignore_errors=True)
            loss = _kill_one(place, mode) or _whole(place.folder / mode)
            if loss is None:
                status, said = run(place.folder, "train.py", "--resume", mode, "--parallel", "ddp")
                loss = f"could not be resumed: {said[-300:]!r}" if status else None
            loss = loss or losses_differ(place.folder / mode, place.folder / "alone")
            yield loss and f"{mode}: {loss}"


def _kill_one(place: Workplace, mode: str) -> Attempt:
    """Start two processes, and kill one of them around a random checkpoint."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [str(ROOT / "train.py"), *_SETTINGS, "--out", mode, "--parallel", mode]
    until = place.folder / mode / f"checkpoints/step-{place.random.randint(1, 17):06d}"
    with open(place.folder / LOG, "wb") as log:
        agent = subprocess.Popen(
            [sys.executable, *launcher, *words],
            cwd=place.folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    started: list[int] = []
    try:
        end = time.monotonic() + PATIENCE
        while not until.exists() and agent.poll() is None and time.monotonic() < end:
            time.sleep(0.002)
        time.sleep(place.random.uniform(0, 0.1))
        started = helpers(agent.pid)
        ranks = [pid for pid in started if _runs(pid, "train.py")]
        if len(ranks) != 2:
            said = (place.folder / LOG).read_text(encoding="utf-8", errors="replace")
            return f"it did not get to {until.name}: {said[-300:]!r}"
        os.kill(place.random.choice(ranks), signal.SIGKILL)
        killed = time.monotonic()
        agent.wait(_BOUND)
        left = survivors(started, patience=killed + _BOUND - time.monotonic())
        return f"{len(left)} processes did not stop within {_BOUND:.0f} s" if left else None
    except subprocess.TimeoutExpired:
        return f"torchrun did not end within {_BOUND:.0f} s"
    finally:
        agent.kill()
        agent.wait()
        survivors(started, patience=0)


def _runs(pid: int, name: str) -> bool:
    try:
        return name.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _whole(folder: Path) -> Attempt:
    """None if every checkpoint that can be seen is whole."""
    try:
        for path in list_checkpoints(folder / "checkpoints"):
            load_checkpoint(path)
    except DamagedCheckpoint as error:
        return f"half a checkpoint was left: {error}"
    return None
