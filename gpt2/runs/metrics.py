"""The measurements of a run: metrics.jsonl, loss.png and trackers."""

import gc
import hashlib
import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from gpt2.common.files import atomic_write, with_file_name
from gpt2.common.json_files import is_number, parse_json
from gpt2.config import Tracker
from gpt2.runs.trackers import start_tracker


class Logs:
    """Writes a run's measurements; each line of metrics.jsonl is a JSON object with its `step`."""

    def __init__(self, folder: Path, *, track: Tracker | None = None, after_step: int = -1) -> None:
        """Open the logs of a run folder.

        Args:
            folder: the run folder.
            track: also give the numbers to this tracker (`gpt2.runs.trackers`).
            after_step: a resumed run goes on after this step; lines of later steps are dropped.
        """
        self.path = folder / "metrics.jsonl"
        self._keep_until(after_step)
        self._tracker = start_tracker(track, folder, after_step) if track else None

    def write(self, **metrics: Any) -> None:
        """Add one line; values are numbers, `step` among them.

        JSON has no numbers that are not finite: they are left out.
        """
        metrics = {name: value for name, value in metrics.items() if isfinite(value)}
        self._file.write(json.dumps(metrics) + "\n")
        self._file.flush()
        if self._tracker is not None:
            self._tracker.write(metrics.pop("step"), metrics)

    def go_back(self, step: int) -> None:
        """Drop the lines after `step`: the run rolled back to it."""
        self._file.close()
        self._keep_until(step)

    def _keep_until(self, step: int) -> None:
        with atomic_write(self.path) as file:
            for metrics in iterate_metrics(self.path):
                if metrics["step"] <= step:
                    file.write((json.dumps(metrics) + "\n").encode())
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed in `close`)

    def close(self) -> None:
        self._file.close()
        if self._tracker is not None:
            self._tracker.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a metrics.jsonl; a last line that a crash cut off is left out.

    Raises:
        ValueError: a line that is no JSON object of a whole `step` and other numbers (or null).
    """
    return list(iterate_metrics(path))


def iterate_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of `read_metrics` one by one: a run of months has many."""
    if not path.exists():
        return
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    broken = ""
    with with_file_name(path), open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if broken:  # and not the last line
                raise ValueError(broken)
            try:
                content = parse_json(line)
            except ValueError as error:
                broken = f"{path}, line {number}: not a JSON object ({error})"
                continue
            if not _is_measurement(content):
                raise ValueError(f"{path}, line {number}: not the numbers of a step")
            yield content


def _is_measurement(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and type(content.get("step")) is int
        and all(value is None or is_number(value, finite=False) for value in content.values())
    )


@dataclass(frozen=True)
class Fingerprint:
    """Length and SHA-256 of a metrics.jsonl, by which a checkpoint knows it again."""

    bytes: int = 0
    sha256: str = hashlib.sha256().hexdigest()

    @classmethod
    def of(cls, path: Path) -> "Fingerprint":
        """The fingerprint of a file; that of an empty one where there is none."""
        size = path.stat().st_size if path.is_file() else 0
        return cls(size, _sha256(path, size))

    def begins(self, path: Path) -> bool:
        """Tell whether the file still begins with what was there."""
        return _sha256(path, self.bytes) == self.sha256


def _sha256(path: Path, size: int) -> str:
    """Return the SHA-256 of the first `size` bytes, or of as many as there are."""
    digest = hashlib.sha256()
    if path.is_file():
        with with_file_name(path), open(path, "rb") as file:
            while block := file.read(min(1 << 20, size)):
                digest.update(block)
                size -= len(block)
    return digest.hexdigest()


def plot_loss(folder: Path) -> Path:
    """Draw `folder`/loss.png from metrics.jsonl: train and validation loss over optimizer steps."""
    # A figure leaves megabytes of cyclic garbage, and Python looks so rarely for garbage among old
    # objects that a hundred figures would be kept. So it does not get old.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _draw_loss(folder)
    finally:
        if collecting:
            gc.enable()
        gc.collect(0)


def _draw_loss(folder: Path) -> Path:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    train, valid = (array("d"), array("d")), (array("d"), array("d"))
    for metrics in iterate_metrics(folder / "metrics.jsonl"):
        for name, (steps, losses) in (("loss", train), ("val_loss", valid)):
            if metrics.get(name) is not None:
                steps.append(metrics["step"])
                losses.append(metrics[name])
    figure, axes = plt.subplots(figsize=(7, 4.2))
    figure.subplots_adjust(left=0.09, right=0.98, bottom=0.12, top=0.92)  # a layout engine is slow
    if train[0]:
        axes.plot(*train, color="#0072B2", lw=1, alpha=0.8, label="train")
    if valid[0]:
        axes.plot(*valid, color="#D55E00", marker="o", ms=4, lw=1.5, label="validation")
        axes.annotate(
            f"{valid[1][-1]:.3f}",
            (valid[0][-1], valid[1][-1]),
            textcoords="offset points",
            xytext=(0, 8),
            ha="right",
            color="#D55E00",
        )
    axes.set(xlabel="optimizer step", ylabel="cross-entropy (nats per token)", title=folder.name)
    axes.grid(alpha=0.25)
    if train[0] or valid[0]:
        axes.legend(frameon=False, loc="upper right")
    path = folder / "loss.png"
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150)
    plt.close(figure)
    return path
