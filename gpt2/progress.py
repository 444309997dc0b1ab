"""What a run measures and says between two lines of metrics.jsonl."""

import math
import time
from collections.abc import Mapping
from typing import Any


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
