"""Validation loss of short runs at several learning rates: what the presets' defaults rest on.

    python -m bench.learning_rates --optimizer adamw --out FILE

Each run is `python train.py` with another rate and seed. Runs that the file holds are not repeated.
"""

import json
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from gpt2.common.cli import run_tool
from gpt2.common.files import write_json
from gpt2.config import Optimizer, TrainConfig
from gpt2.runs.metrics import read_metrics
from gpt2.training.run_training import run_training

SEEDS = (1, 2)


@dataclass(frozen=True)
class Arguments:
    """Train a preset at several learning rates, with several seeds each."""

    out: Path
    """The .json file to write, or to go on with."""
    preset: str = "demo"
    optimizer: Optimizer = "adamw"
    lr: tuple[float, ...] = (1.5e-3, 3e-3, 6e-3)
    steps: int = 100


def main(arguments: Arguments) -> None:
    runs: list[dict[str, Any]] = []
    if arguments.out.exists():
        runs = json.loads(arguments.out.read_text(encoding="utf-8"))
    asked = {"preset": arguments.preset, "optimizer": arguments.optimizer, "steps": arguments.steps}
    for seed in SEEDS:
        for lr in arguments.lr:
            run = asked | {"lr": lr, "seed": seed}
            if not any(run.items() <= done.items() for done in runs):
                runs.append(run | {"val_loss": _train(run)})
                write_json(arguments.out, runs)
    losses: defaultdict[tuple[Any, ...], list[Any]] = defaultdict(list)
    for run in runs:
        losses[run["preset"], run["optimizer"], run["steps"], run["lr"]].append(run["val_loss"])
    for (preset, optimizer, steps, lr), found in sorted(losses.items()):
        print(f"{preset} {optimizer} {steps} steps lr {lr:g}: {mean(found):.3f} of {len(found)}")


def _train(run: dict[str, Any]) -> float:
    """The validation loss after the last step."""
    with tempfile.TemporaryDirectory() as folder:
        run_training(TrainConfig(**run, eval_every=run["steps"], out=folder))
        rows = read_metrics(Path(folder) / "metrics.jsonl")
        return float([row["val_loss"] for row in rows if "val_loss" in row][-1])


if __name__ == "__main__":
    run_tool(main, Arguments)
