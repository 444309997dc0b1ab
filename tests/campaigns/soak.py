"""A soak: thousands of steps of a tiny model, during which nothing may grow that should not.

One training with evaluations and checkpoints throughout is watched from outside: its memory, open
files, threads and run folder. Then it is killed in the middle of a line of metrics.jsonl, and
resumed.
"""

import json
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from gpt2.runs.metrics import read_metrics
from gpt2.training import trainer
from tests.campaigns.faults import processes
from tests.campaigns.faults.processes import LOG, finish, start, stop, wait_for
from tests.campaigns.faults.workplace import write_stories
from tests.campaigns.options import Options

SHORT_STEPS, LONG_STEPS = 400, 20_000
LOG_EVERY, CHECKPOINT_EVERY, EVAL_EVERY, KEEP = 10, 50, 100, 3
_MODEL = [
    *("--data", "stories.txt", "--vocab-size", "300", "--n-layer", "1", "--n-head", "2"),
    *("--n-embd", "16", "--seq-len", "16", "--batch-size", "2", "--grad-accum", "2"),
    *("--dropout", "0.1", "--device", "cpu", "--dtype", "fp32", "--sample-tokens", "4"),
    *("--log-every", str(LOG_EVERY), "--checkpoint-every", str(CHECKPOINT_EVERY)),
    *("--eval-every", str(EVAL_EVERY), "--eval-tokens", "500", "--keep", str(KEEP)),
]
GROWTH_PER_1000 = 64 << 10  # bytes: 64 MiB in a million steps
# Fewer than 10,000 steps cannot tell so little from a heap that settles: their growth in all.
GROWTH = 4 << 20
LINE = 256  # bytes of a line of metrics.jsonl
# Of five files each: the newest checkpoints, the best, and one that is written; and some beside.
FILES = 5 * (KEEP + 2) + 8


@dataclass(frozen=True)
class Sample:
    """The state of the process and its run folder at one moment; sizes in bytes."""

    step: int
    rss: int
    handles: int
    threads: int
    files: int
    metrics: int


@dataclass(frozen=True)
class Verdict:
    """A quantity, its measured value, the bound that it must keep, and whether it does."""

    what: str
    measured: str
    bound: str
    kept: bool


def run(options: Options) -> dict[str, Any]:
    """Train, watch, kill and resume; return the verdicts and the samples that they rest on."""
    steps = options.steps or (LONG_STEPS if options.long else SHORT_STEPS)
    if steps < 300 or options.seconds is not None:
        raise ValueError("the soak counts steps: give --steps 300 or more, and no --seconds")
    torch.set_num_threads(1)
    processes.preload()
    more = max(100, steps // 20)  # left to do when the process is killed
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_stories(folder)
        samples = _watched(folder, steps, more, options.seed)
        verdicts = [*judge(samples), _cut_and_resumed(folder, steps + more)]
    chosen = options.chosen(verdict.what for verdict in verdicts)
    return {
        "steps": steps,
        "rows": [asdict(verdict) for verdict in verdicts if verdict.what in chosen],
        "samples": [asdict(sample) for sample in samples[:: math.ceil(len(samples) / 400)]],
    }


def _watched(folder: Path, steps: int, more: int, seed: int) -> list[Sample]:
    """Train until `steps`, then kill; return some forty samples, or one in 50 steps."""
    words = [*_MODEL, "--seed", str(seed), "--steps", str(steps + more), "--out", "run"]
    process = start(folder, "train.py", *words, first=_draw_each_time)
    samples: list[Sample] = []
    every = max(1, min(50, steps // 40))

    def done() -> bool:
        step = _last_step(folder / "run/metrics.jsonl")
        if step >= (samples[-1].step if samples else 0) + every:
            samples.append(_sample(process, folder / "run", step))
        return step >= steps

    arrived = wait_for(process, done, patience=math.inf)
    stop(process)
    status = finish(process)
    assert arrived, f"training ended by itself, with {status}: {(folder / LOG).read_text()}"
    return samples


def _draw_each_time() -> None:
    """Draw loss.png at each evaluation: its first drawing needs memory, the others should not."""
    trainer.PLOT_SECONDS = 0.0


def _last_step(metrics: Path) -> int:
    """Return the step of the last whole line."""
    if not metrics.exists():
        return 0
    with open(metrics, "rb") as file:
        file.seek(max(0, metrics.stat().st_size - 4 * LINE))
        lines = file.read().split(b"\n")
    return int(json.loads(lines[-2])["step"]) if len(lines) > 2 else 0


def _sample(process: psutil.Process, folder: Path, step: int) -> Sample:
    files = sum(len(files) for _, _, files in os.walk(folder))
    metrics = (folder / "metrics.jsonl").stat().st_size
    with process.oneshot():
        rss, handles = process.memory_info().rss, process.num_fds()
        return Sample(step, rss, handles, process.num_threads(), files, metrics)


def judge(samples: Sequence[Sample]) -> list[Verdict]:
    """Judge whether anything grew that must not, after a first third in which a process settles.

    Of open files and threads the least is compared: a file is open for a moment now and then.
    """
    steps = [sample.step for sample in samples]
    third = len(samples) // 3
    settled, last = samples[third:-third], samples[-third:]
    watched = [*settled, *last]
    line = np.polyfit([s.step for s in watched], [s.rss for s in watched], 1, cov=True)
    slope, error = line[0][0], math.sqrt(line[1][0, 0])
    long = steps[-1] - steps[third]
    bound = GROWTH_PER_1000 if long >= 10_000 else GROWTH * 1000 / long
    handles, threads = (
        [min(getattr(sample, name) for sample in part) for part in (settled, last)]
        for name in ("handles", "threads")
    )
    files, metrics = max(sample.files for sample in samples), samples[-1].metrics
    lines = steps[-1] // LOG_EVERY
    rows = [
        ("resident memory, growth per 1,000 steps",
         f"{1000 * slope / 1024:+.1f} +- {1000 * error / 1024:.1f} KiB, "
         f"of {watched[-1].rss / (1 << 20):.0f} MiB",
         f"at most {bound / 1024:.0f} KiB", bool(1000 * (slope + 2 * error) <= bound)),
        ("open files", "{}, later {}".format(*handles), "no more later", handles[1] <= handles[0]),
        ("threads", "{}, later {}".format(*threads), "no more later", threads[1] <= threads[0]),
        ("files in the run folder", f"{files}", f"at most {FILES}", files <= FILES),
        (f"metrics.jsonl, {lines:,} lines", f"{metrics:,} bytes",
         f"at most {LINE * lines:,} bytes", metrics <= LINE * lines),
    ]  # fmt: skip
    return [Verdict(*row) for row in rows]


def _cut_and_resumed(folder: Path, steps: int) -> Verdict:
    """Cut metrics.jsonl as a process does that is killed while it writes a line; then resume."""
    path = folder / "run/metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][: len(lines[-1]) // 2])
    cut = len(lines) * LOG_EVERY
    status, said = processes.run(folder, "train.py", "--resume", "run")
    if status:
        outcome = f"could not be resumed: {said.strip()[-200:]}"
    else:
        logged = [metrics["step"] for metrics in read_metrics(path)]
        wanted = list(range(LOG_EVERY, steps + 1, LOG_EVERY))
        if "metrics.jsonl is not what it was" in said:  # the line was older than the checkpoint
            wanted.remove(cut)
        outcome = "every line once" if logged == wanted else f"lines of the steps {logged[-9:]}"
    what = f"killed in mid-line of metrics.jsonl, resumed to step {steps:,}"
    return Verdict(what, outcome, "every line once", outcome == "every line once")
