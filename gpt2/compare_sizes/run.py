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
from typing import Any

from gpt2.common.cli import failing_plainly
from gpt2.config import TrainConfig
from gpt2.training.out_of_memory import OutOfMemory
from gpt2.training.recovery import Diverged
from gpt2.training.run_training import run_training


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


def _end_with_parent() -> None:
    # Not by sys.stdin, whose lock a thread that waits in it would hold when the process ends.
    os.read(0, 1)
    signal.raise_signal(signal.SIGTERM)


if __name__ == "__main__":
    asked = TrainConfig(**json.loads(sys.stdin.buffer.readline()))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with failing_plainly(Diverged, OutOfMemory):
        ended_by = run_training(asked)
    sys.exit(128 + ended_by if ended_by else 0)
