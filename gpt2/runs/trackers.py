"""Trackers of experiments, which are given the numbers that metrics.jsonl has.

    tensorboard    events in the run folder's tensorboard/
    wandb          offline in the run folder's wandb/, for `wandb sync`; WANDB_MODE=online sends it
    trackio        its own store on this machine, for `trackio show`

A run is one run there, by the name of its folder, also when it is resumed. Steps that were taken
again after a crash or a rollback may stand there twice; metrics.jsonl has them once.
"""

import hashlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gpt2.config import Tracker

_PROJECT = "gpt2"
Write = Callable[[int, Mapping[str, Any]], None]


class Started(NamedTuple):
    """A tracker at work: what takes the numbers of a step, and what ends it."""

    write: Write
    close: Callable[[], Any]


def check_tracker(track: Tracker | None) -> None:
    """Raise ValueError if the library of a tracker is missing."""
    if track is not None and importlib.util.find_spec(track) is None:
        raise ValueError(f"--track {track} needs its library: pip install -e '.[{track}]'")


def start_tracker(track: Tracker, folder: Path, after_step: int) -> Started:
    """Start a tracker for a run folder; a resumed run goes on after this step."""
    return _STARTS[track](folder.resolve(), after_step)


def _identity(folder: Path) -> str:
    return hashlib.sha256(str(folder).encode()).hexdigest()[:8]


def _tensorboard(folder: Path, after_step: int) -> Started:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=after_step + 1)

    def write(step: int, metrics: Mapping[str, Any]) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)

    return Started(write, writer.close)


def _wandb(folder: Path, after_step: int) -> Started:
    import wandb

    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", _PROJECT),
        name=folder.name,
        id=_identity(folder),
        resume="allow",
        dir=folder,
        mode=os.environ.get("WANDB_MODE", "offline"),
    )
    return Started(lambda step, metrics: run.log(dict(metrics), step=step), run.finish)


def _trackio(folder: Path, after_step: int) -> Started:
    import trackio

    name = f"{folder.name}-{_identity(folder)}"  # which alone tells a run from others
    trackio.init(project=_PROJECT, name=name, resume="allow", embed=False)
    return Started(lambda step, metrics: trackio.log(dict(metrics), step=step), trackio.finish)


_STARTS: Mapping[Tracker, Callable[[Path, int], Started]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
}
