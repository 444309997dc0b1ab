"""What to expect of `python train.py`: minutes, loss and perplexity by preset and machine.

    python -m bench.expected --out bench/results/<device>/expected/<date>-<commit>.json
    python -m bench.expected --out FILE --run "train.py --preset gpt2 --data openwebtext"

Each run is the command as anyone gives it, in a process and a folder of its own; its minutes are
those of the whole command, preparation of the text, scoring and samples included. A run on
WikiText is also scored per word, the figure of the literature
(`gpt2/evaluate/word_perplexity.py`). Runs that the file holds are not repeated.

`tables` shows the runs of all such files, and for GPUs the least time of each preset's default run,
computed by `bench.estimate`: how long it takes there, and how good it gets, is seen by running it.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench.estimate.roofline import Estimate, Step
from bench.harness import markdown
from bench.harness.results import FOLDER, ROOT
from gpt2.common.cli import run_tool
from gpt2.common.devices import DEVICES
from gpt2.common.files import write_json
from gpt2.common.json_files import read_json_object
from gpt2.config import PRESETS, Settings, TrainConfig, settle

RUNS = (
    "train.py", "train.py --optimizer adamw", "train.py --attn triton --kernels triton",
)  # fmt: skip
CARDS = ("T4", "RTX 4090", "A100", "H100")


@dataclass(frozen=True)
class Arguments:
    """Train as the README says, and keep what came out."""

    out: Path
    """The .json file to write, or to go on with."""
    run: tuple[str, ...] = RUNS
    """Commands, without the python before them."""


def main(arguments: Arguments) -> None:
    runs: list[dict[str, Any]] = []
    if arguments.out.exists():
        runs = json.loads(arguments.out.read_text(encoding="utf-8"))
    for command in arguments.run:
        if all(run["command"] != _shown(command) for run in runs):
            runs.append(_train(command))
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            write_json(arguments.out, runs)
    print("\n".join(measured(runs)))


def _train(command: str) -> dict[str, Any]:
    """Run the command.

    Raises:
        subprocess.CalledProcessError: it failed; it has said why.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        places = ["--out", str(out), "--cache-dir", folder]
        start = time.perf_counter()
        subprocess.run([sys.executable, *command.split(), *places], cwd=ROOT, check=True)
        minutes = (time.perf_counter() - start) / 60
        result = read_json_object(out / "result.json")
        row = {"command": _shown(command), "minutes": round(minutes, 2)}
        row |= {key: result[key] for key in ("machine", "data", "val_loss", "test", "finished")}
        if "wikitext" in result["data"]["name"]:
            scoring = [sys.executable, "-m", "gpt2.evaluate", str(out), "--task", "wikitext"]
            scoring += ["--json", "--cache-dir", folder]
            scored = subprocess.run(scoring, cwd=ROOT, check=True, capture_output=True)
            row["word_perplexity"] = json.loads(scored.stdout)["word_perplexity"]
        return row


def _shown(command: str) -> str:
    """The command, with a folder of text by its name alone."""
    return " ".join(Path(word).name if "/" in word else word for word in command.split())


def measured(runs: list[dict[str, Any]]) -> list[str]:
    """A Markdown table of runs."""
    head = [
        "run", "machine", "minutes", "validation loss", "test perplexity", "bits per byte",
        "perplexity per word",
    ]  # fmt: skip
    lines = []
    for run in runs:
        machine, test = run["machine"], run["test"]
        word = f"{run['word_perplexity']:,.1f}" if "word_perplexity" in run else ""
        lines.append([
            f"`{run['command']}`", f"{machine['device']}, {machine['dtype']}",
            f"{run['minutes']:.1f}", f"{run['val_loss']:.3f}", f"{test['perplexity']:,.1f}",
            f"{test['bits_per_byte']:.3f}", word,
        ])  # fmt: skip
    return markdown.table(head, lines, texts=2)


def computed() -> list[str]:
    """A Markdown table of the least time of the larger presets' default runs on GPUs."""
    lines = []
    for name in list(PRESETS)[1:]:  # a step of the demo is as short as its launches
        settings = settle(TrainConfig(preset=name))
        assert settings.steps is not None
        tokens = settings.steps * settings.sequences_per_step * settings.seq_len
        cells = [_least_time(settings, card) for card in CARDS]
        lines.append([f"`{name}`", f"{tokens / 1e6:,.0f} M", *cells])
    return markdown.table(["preset", "tokens", *CARDS], lines)


def _least_time(settings: Settings, card: str) -> str:
    """The time as text, unless a micro-batch of the preset does not fit the device."""
    dtype: Literal["bf16", "fp16"] = "bf16" if DEVICES[card].bf16 else "fp16"
    step = Step(
        PRESETS[settings.preset], settings.batch_size, settings.seq_len, dtype,
        settings.grad_accum, settings.optimizer,
    )  # fmt: skip
    estimate = Estimate(step, card).result()
    if estimate["largest_batch"] < settings.batch_size:
        return "does not fit"
    assert settings.steps is not None
    hours = settings.steps * estimate["seconds"] / 3600
    return f"{hours:,.1f} h" if hours >= 1 else f"{60 * hours:.2g} min"


def tables() -> list[str]:
    """Both tables, of all committed runs."""
    files = sorted(FOLDER.glob("*/expected/*.json"))
    runs = [run for file in files for run in json.loads(file.read_text(encoding="utf-8"))]
    return [*measured(runs), "", *computed()]


if __name__ == "__main__":
    run_tool(main, Arguments)
