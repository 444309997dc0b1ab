"""Training a size in a process of its own, so that its peak memory is its own.

The process reads its `TrainConfig` as a line of JSON, and then watches the pipe it came by: when
the other end is closed, or its owner dies, it saves a checkpoint and ends.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import torch

from gpt2.common.files import write_json
from gpt2.config import TrainConfig
from gpt2.training.build import begin, build, plan, prepare_data
from gpt2.training.out_of_memory import OutOfMemory, oom_advice
from gpt2.training.results import report
from gpt2.training.trainer import Diverged

MEMORY = "memory.json"


def train(config: TrainConfig) -> None:
    """Train a run to its end in another process, from the start or, with `resume`, onwards.

    Raises:
        ValueError: the process ended before the run; it has printed why, if it could.
    """
    # A group of its own, so that a Ctrl-C on the terminal reaches it through us, and once.
    own_group: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        own_group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    process = subprocess.Popen(
        [sys.executable, "-m", "gpt2.compare_sizes.run"], stdin=subprocess.PIPE, **own_group
    )
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(dataclasses.asdict(config)).encode() + b"\n")
        process.stdin.flush()
        status = process.wait()
    except BaseException:
        process.stdin.close()
        try:
            process.wait()
        except BaseException:
            process.kill()
            raise
        raise
    folder = config.resume or config.out
    if status < 0:
        name = signal.Signals(-status).name
        why = " (the system may be out of memory)" if name == "SIGKILL" else ""
        raise ValueError(f"the process training {folder} was ended by {name}{why}")
    if status:
        raise ValueError(f"the training of {folder} ended before its last step, as said above")


def _main() -> int:
    config = TrainConfig(**json.loads(sys.stdin.buffer.readline()))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        with oom_advice(lambda: "choose smaller sizes, or a lower --batch-size or --seq-len"):
            return _train(config)
    except (ValueError, OSError, Diverged, OutOfMemory) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _train(config: TrainConfig) -> int:
    run = plan(config)
    prepared = prepare_data(run)
    trainer = build(run, prepared)
    with run.claim():
        begin(run, prepared, trainer)
        first = trainer.step
        signal_number = trainer.fit()
        if signal_number is not None:
            return 128 + signal_number
        if trainer.step > first:
            peak, measure = peak_memory(trainer.machine.device)
            write_json(run.folder / MEMORY, {"peak_memory_bytes": peak, "measure": measure})
        report(trainer, prepared)
    return 0


def _end_with_parent() -> None:
    # Not by sys.stdin, whose lock a thread that waits in it would hold when the process ends.
    os.read(0, 1)
    signal.raise_signal(signal.SIGTERM)


def peak_memory(device: torch.device) -> tuple[int | None, str]:
    """Bytes that training took at most up to now, and what was measured."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), "GPU memory allocated by PyTorch"
    what = "resident memory of the process, with Python and PyTorch in it"
    if device.type == "cpu" and sys.platform == "linux":
        # Not ru_maxrss: a child inherits in it the peak of the process that started it.
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024, what
    if device.type == "cpu" and sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, what
    return None, "not measured on this system"


if __name__ == "__main__":
    sys.exit(_main())
