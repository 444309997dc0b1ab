"""What a run watches: its pace, spikes of the loss, and signals that ask it to end.

A step's loss is a spike when it exceeds the mean of the last `WINDOW` by more than `sigma` of their
standard deviations. What follows is `--on-spike`:

    warn       a line on the terminal
    skip       the step does not reach the weights
    rollback   back to the last checkpoint, and on with the text after the spike (as Chowdhery et
               al. 2022, arXiv:2204.02311, section 5.1, did by hand)
"""

import math
import os
import signal
import statistics
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from gpt2.common.distributed import say


class Interval:
    """The steps since the last line of metrics. Part of a checkpoint, by `state_dict`."""

    def __init__(self, state: Mapping[str, float] | None = None) -> None:
        state = state or {"loss": 0.0, "steps": 0}
        self._loss, self._steps = state["loss"], int(state["steps"])
        self._timed, self._seconds = 0, 0.0
        self._began = time.perf_counter()

    def state_dict(self) -> dict[str, float]:
        """The sum of the losses and their number; speed is measured anew after a resumption."""
        return {"loss": self._loss, "steps": self._steps}

    def start_step(self) -> None:
        """Begin to time a step: what went before, an evaluation or a checkpoint, is not part."""
        self._began = time.perf_counter()

    def add(self, loss: float) -> None:
        """Count a step that was taken."""
        self._loss += loss
        self._steps += 1
        self._timed += 1
        self._seconds += time.perf_counter() - self._began

    def measures(self, tokens_per_step: int) -> dict[str, float]:
        """Mean loss and speed since the last call; empty when no step was taken since then."""
        if not self._steps:
            return {}
        loss = self._loss / self._steps
        speed = self._timed * tokens_per_step / self._seconds if self._timed else 0.0
        self._loss, self._steps, self._timed, self._seconds = 0.0, 0, 0, 0.0
        return {"loss": loss, "tokens_per_s": speed}


def progress_line(metrics: Mapping[str, Any], *, steps: int, epoch: float) -> str:
    """The line on the terminal when the validation loss of one of `steps` steps is known."""
    parts = [f"step {metrics['step']:>6,}/{steps:,}"]
    if "loss" in metrics:
        parts.append(f"train loss {metrics['loss']:.4f}")
    parts.append(f"val loss {metrics['val_loss']:.4f}")
    parts.append(f"epoch {epoch:.2f}")
    if "loss" in metrics:
        parts.append(f"lr {metrics['lr']:.2e}")
        parts.append(f"{metrics['tokens_per_s']:,.0f} tok/s")
    if "mfu_exact" in metrics:
        parts.append(f"MFU {metrics['mfu_exact']:.1%} (exact FLOPs, data-sheet peak)")
    return " | ".join(parts)


def finite(value: float | None) -> float | None:
    """What JSON has no number for is None."""
    return value if value is not None and math.isfinite(value) else None


WINDOW = 100
LEAST = 20  # losses to know before anything is called a spike


class SpikeGuard:
    """The recent losses of a run and the limit that they set. Part of a checkpoint, by `losses`."""

    def __init__(self, sigma: float, losses: Iterable[float] = ()) -> None:
        self.sigma = sigma
        self.losses = deque(losses, maxlen=WINDOW)

    @property
    def limit(self) -> float:
        """The loss that the next step must not exceed; infinite while too little is known."""
        if not self.sigma or len(self.losses) < LEAST:
            return math.inf
        mean = statistics.fmean(self.losses)
        return mean + self.sigma * statistics.pstdev(self.losses, mean)

    def add(self, loss: float) -> None:
        """Remember the loss of a step that was taken."""
        self.losses.append(loss)


@contextmanager
def catching() -> Iterator[list[int]]:
    """A list that the first signal to end is put into; the second one acts as usual."""
    caught: list[int] = []
    names = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if os.name == "posix" else [])]

    def catch(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        for name in names:
            signal.signal(name, signal.SIG_DFL)
        say(
            f"{signal.Signals(number).name}: finishing this step and saving; once more ends at once"
        )

    before = [signal.signal(name, catch) for name in names]
    try:
        yield caught
    finally:
        for name, handler in zip(names, before, strict=True):
            signal.signal(name, handler)
