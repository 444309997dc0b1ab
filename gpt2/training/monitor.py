"""What a run shows while it trains: its pace and losses; and the signals that ask it to end."""

import math
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from gpt2.common.distributed import say
from gpt2.runs.checkpoint import LossSum


class Interval:
    """The steps since the last line of metrics; a checkpoint keeps their `losses`."""

    def __init__(self, losses: LossSum) -> None:
        self._loss, self._steps = losses.loss, losses.steps
        self._timed, self._seconds = 0, 0.0
        self._began = time.perf_counter()

    @property
    def losses(self) -> LossSum:
        """The losses so far. The speed is no part: it is measured anew after a resumption."""
        return LossSum(self._loss, self._steps)

    def start_step(self) -> None:
        """Begin to time a step; the time before it, of an evaluation say, does not count."""
        self._began = time.perf_counter()

    def add(self, loss: float) -> None:
        """Count a step, which ends now, with its loss."""
        self._loss += loss
        self._steps += 1
        self._timed += 1
        self._seconds += time.perf_counter() - self._began

    def measures(self, tokens_per_step: int) -> dict[str, float]:
        """Return mean loss and speed since the last call; empty if no step was taken since."""
        if not self._steps:
            return {}
        loss = self._loss / self._steps
        speed = self._timed * tokens_per_step / self._seconds if self._timed else 0.0
        self._loss, self._steps, self._timed, self._seconds = 0.0, 0, 0, 0.0
        return {"loss": loss, "tokens_per_s": speed}


def progress_line(metrics: Mapping[str, Any], *, steps: int, epoch: float) -> str:
    """Format the line that the terminal shows with each validation loss."""
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
    """Return None for a value that JSON has no number for, infinite or NaN."""
    return value if value is not None and math.isfinite(value) else None


@contextmanager
def catching() -> Iterator[list[int]]:
    """Catch the first SIGINT, SIGTERM or SIGHUP into the list given; a second one acts as usual.

    SIGHUP stays ignored where `nohup` has it so.
    """
    caught: list[int] = []
    names = [signal.SIGINT, signal.SIGTERM]
    if os.name == "posix" and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        names.append(signal.SIGHUP)

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
