"""What a run leaves to look at: metrics.jsonl, loss.png, TensorBoard, and lines on the terminal."""

import hashlib
import json
from math import isfinite
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gpt2.files import atomic_write
from gpt2.parallel import world


class Logs:
    """Writes a run's measurements; each line of metrics.jsonl is a JSON object with its `step`."""

    def __init__(self, folder: Path, *, tensorboard: bool = False, after_step: int = -1) -> None:
        """Open the logs of a run folder.

        Args:
            folder: the run folder.
            tensorboard: also write TensorBoard events to `folder`/tensorboard.
            after_step: a resumed run goes on after this step; lines of later steps are dropped.
        """
        self.path = folder / "metrics.jsonl"
        self._keep_until(after_step)
        self._writer = _tensorboard_writer(folder, after_step) if tensorboard else None

    def write(self, **metrics: Any) -> None:
        """Add one line; values are numbers, `step` among them.

        JSON has no numbers that are not finite: they are left out.
        """
        metrics = {name: value for name, value in metrics.items() if isfinite(value)}
        self._file.write(json.dumps(metrics) + "\n")
        self._file.flush()
        if self._writer is not None:
            for name, value in metrics.items():
                if name != "step":
                    self._writer.add_scalar(name, value, metrics["step"])

    def go_back(self, step: int) -> None:
        """Drop the lines after `step`: the run rolled back to it."""
        self._file.close()
        self._keep_until(step)

    def _keep_until(self, step: int) -> None:
        kept = [m for m in read_metrics(self.path) if m["step"] <= step]
        with atomic_write(self.path) as file:
            file.write("".join(json.dumps(m) + "\n" for m in kept).encode())
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed in `close`)

    def close(self) -> None:
        self._file.close()
        if self._writer is not None:
            self._writer.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl. A last line cut off by a crash is left out."""
    if not path.exists():
        return []
    metrics = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            metrics.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise ValueError(f"{path}, line {number}: not a JSON object") from None
    return metrics


def fingerprint(path: Path) -> dict[str, Any]:
    """Length and SHA-256 of a metrics.jsonl, for a checkpoint to know it again."""
    content = path.read_bytes() if path.exists() else b""
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def altered(path: Path, known: dict[str, Any]) -> bool:
    """Whether a metrics.jsonl does not begin with what `fingerprint` saw."""
    content = path.read_bytes()[: known["bytes"]] if path.exists() else b""
    return hashlib.sha256(content).hexdigest() != known["sha256"]


def plot_loss(folder: Path) -> Path:
    """Draw `folder`/loss.png from metrics.jsonl: train and validation loss over optimizer steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    metrics = read_metrics(folder / "metrics.jsonl")
    train = [(m["step"], m["loss"]) for m in metrics if "loss" in m]
    valid = [(m["step"], m["val_loss"]) for m in metrics if "val_loss" in m]
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    if train:
        axes.plot(*zip(*train, strict=True), color="#0072B2", lw=1, alpha=0.8, label="train")
    if valid:
        axes.plot(
            *zip(*valid, strict=True), color="#D55E00", marker="o", ms=4, lw=1.5, label="validation"
        )
        axes.annotate(
            f"{valid[-1][1]:.3f}",
            valid[-1],
            textcoords="offset points",
            xytext=(0, 8),
            ha="right",
            color="#D55E00",
        )
    axes.set(xlabel="optimizer step", ylabel="cross-entropy (nats per token)", title=folder.name)
    axes.grid(alpha=0.25)
    if train or valid:
        axes.legend(frameon=False)
    path = folder / "loss.png"
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150)
    plt.close(figure)
    return path


def say(line: str) -> None:
    """Print a line, once for all processes, without tearing a progress bar apart."""
    if world().main:
        tqdm.write(line)


def _tensorboard_writer(folder: Path, after_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError(
            "--tensorboard needs the tensorboard package: pip install -e '.[tensorboard]'"
        ) from None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=after_step + 1)
