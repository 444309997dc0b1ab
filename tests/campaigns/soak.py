"""A soak: thousands of steps of a tiny model, while which nothing may grow that should not.

    python -m tests.campaigns.soak --out soak.json --plot soak.png      20,000 steps, some minutes
    python -m tests.campaigns.soak --table soak.json                    a result as a table

One training with evaluations and checkpoints throughout is watched from outside: its memory, open
files, threads and run folder. Then it is killed in the middle of a line of metrics.jsonl, and goes
on. Ends with status 1 when something grew, or was lost. Needs fork and /proc: Linux.
"""

import json
import math
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from gpt2.common.cli import run_tool
from gpt2.common.files import write_json
from gpt2.runs.metrics import read_metrics
from tests.campaigns.faults.processes import finish, preload, run, start, stop, wait_for
from tests.campaigns.faults.workplace import write_stories

LOG_EVERY, CHECKPOINT_EVERY, EVAL_EVERY, KEEP = 10, 50, 100, 3
_MODEL = [
    *("--data", "stories.txt", "--vocab-size", "300", "--n-layer", "1", "--n-head", "2"),
    *("--n-embd", "16", "--seq-len", "16", "--batch-size", "2", "--grad-accum", "2"),
    *("--dropout", "0.1", "--device", "cpu", "--dtype", "fp32", "--sample-tokens", "4"),
    *("--log-every", str(LOG_EVERY), "--checkpoint-every", str(CHECKPOINT_EVERY)),
    *("--eval-every", str(EVAL_EVERY), "--eval-tokens", "500", "--keep", str(KEEP)),
]
GROWTH_PER_1000 = 64 << 10  # bytes: 64 MiB in a million steps
# Fewer than 10,000 steps cannot tell so little from a heap that settles: what they may grow in all.
GROWTH = 4 << 20
LINE = 256  # bytes of a line of metrics.jsonl
# Of five files each: the newest checkpoints, the best, and one that is written; and some beside.
FILES = 5 * (KEEP + 2) + 8


@dataclass(frozen=True)
class Arguments:
    """Train for long and watch memory, open files, threads and the run folder."""

    steps: int = 20_000
    """Steps until the process is killed."""
    out: str | None = None
    """Write the result here as JSON."""
    plot: str | None = None
    """Draw memory and open files over the steps here, as PNG."""
    table: str | None = None
    """Print the table of a result file, and do nothing else."""


@dataclass(frozen=True)
class Sample:
    """What was seen of the process and its run folder at a moment; sizes in bytes."""

    step: int
    rss: int
    handles: int
    threads: int
    files: int
    metrics: int


@dataclass(frozen=True)
class Verdict:
    """A quantity, what was measured of it, the bound that it must keep, and whether it does."""

    what: str
    measured: str
    bound: str
    kept: bool


def soak(steps: int) -> dict[str, Any]:
    """Train, watch, kill, go on; return what was seen and the verdicts."""
    torch.set_num_threads(1)
    preload()
    more = max(100, steps // 20)  # left to do when the process is killed
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_stories(folder)
        samples = _watched(folder, steps, more)
        verdicts = judge(samples)
        verdicts.append(_cut_and_resumed(folder, steps + more))
    return {
        "command": f"python -m tests.campaigns.soak --steps {steps}",
        "torch": torch.__version__,
        "system": platform.platform(terse=True),
        "steps": steps,
        "seconds": round(time.monotonic() - began),
        "verdicts": [asdict(verdict) for verdict in verdicts],
        "samples": [asdict(sample) for sample in samples[:: math.ceil(len(samples) / 400)]],
    }


def _watched(folder: Path, steps: int, more: int) -> list[Sample]:
    """Train until `steps`, then kill; what was seen twenty times in a thousand steps, about."""
    pid = start(folder, "train.py", *_MODEL, "--steps", str(steps + more), "--out", "run")
    samples: list[Sample] = []
    every = max(1, min(50, steps // 40))

    def done() -> bool:
        step = _last_step(folder / "run/metrics.jsonl")
        if step >= (samples[-1].step if samples else 0) + every:
            samples.append(_sample(pid, folder / "run", step))
        return step >= steps

    arrived = wait_for(pid, done, patience=math.inf)
    stop(pid)
    status = finish(pid)
    assert arrived, f"training ended by itself, with {status}: {(folder / 'log.txt').read_text()}"
    return samples


def _last_step(metrics: Path) -> int:
    """The step of the last whole line."""
    if not metrics.exists():
        return 0
    with open(metrics, "rb") as file:
        file.seek(max(0, metrics.stat().st_size - 4 * LINE))
        lines = file.read().split(b"\n")
    return int(json.loads(lines[-2])["step"]) if len(lines) > 2 else 0


def _sample(pid: int, folder: Path, step: int) -> Sample:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    rss, threads = (
        int(found[1])
        for name in ("VmRSS", "Threads")
        if (found := re.search(rf"^{name}:\s+(\d+)", status, flags=re.MULTILINE))
    )
    return Sample(
        step=step,
        rss=1024 * rss,
        handles=len(os.listdir(f"/proc/{pid}/fd")),
        threads=threads,
        files=sum(len(files) for _, _, files in os.walk(folder)),
        metrics=(folder / "metrics.jsonl").stat().st_size,
    )


def judge(samples: Sequence[Sample]) -> list[Verdict]:
    """Whether what must not grow did not, after a first third in which a process settles.

    Of open files and threads the least is compared: a file is open for a moment now and then.
    """
    steps = [sample.step for sample in samples]
    third = len(samples) // 3
    settled, last = samples[third:-third], samples[-third:]
    watched = [*settled, *last]
    slope, error = line_fit([s.step for s in watched], [s.rss for s in watched])
    long = steps[-1] - steps[third]
    bound = GROWTH_PER_1000 if long >= 10_000 else GROWTH * 1000 / long
    verdicts = [
        Verdict(
            "resident memory, growth per 1,000 steps",
            f"{1000 * slope / 1024:+.1f} +- {1000 * error / 1024:.1f} KiB, "
            f"of {watched[-1].rss / (1 << 20):.0f} MiB",
            f"at most {bound / 1024:.0f} KiB",
            1000 * (slope + 2 * error) <= bound,
        )
    ]
    for name, what in (("handles", "open files"), ("threads", "threads")):
        before, after = (min(getattr(s, name) for s in part) for part in (settled, last))
        verdicts.append(Verdict(what, f"{before}, later {after}", "no more later", after <= before))
    files, lines = max(sample.files for sample in samples), steps[-1] // LOG_EVERY
    return [
        *verdicts,
        Verdict("files in the run folder", f"{files}", f"at most {FILES}", files <= FILES),
        Verdict(
            f"metrics.jsonl, {lines:,} lines",
            f"{samples[-1].metrics:,} bytes",
            f"at most {LINE * lines:,} bytes",
            samples[-1].metrics <= LINE * lines,
        ),
    ]


def line_fit(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """The slope of the least-squares line, and its standard error."""
    slope, intercept = statistics.linear_regression(x, y)
    residuals = (b - intercept - slope * a for a, b in zip(x, y, strict=True))
    spread = sum((a - statistics.fmean(x)) ** 2 for a in x)
    return slope, math.sqrt(sum(r * r for r in residuals) / max(1, len(x) - 2) / spread)


def _cut_and_resumed(folder: Path, steps: int) -> Verdict:
    """Leave metrics.jsonl as a process does that is killed while it writes a line; then go on."""
    path = folder / "run/metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][: len(lines[-1]) // 2])
    cut = len(lines) * LOG_EVERY
    status, said = run(folder, "train.py", "--resume", "run")
    if status:
        outcome = f"could not go on: {said.strip()[-200:]}"
    else:
        logged = [metrics["step"] for metrics in read_metrics(path)]
        wanted = list(range(LOG_EVERY, steps + 1, LOG_EVERY))
        if "metrics.jsonl is not what it was" in said:  # the line was older than the checkpoint
            wanted.remove(cut)
        outcome = "every line once" if logged == wanted else f"lines of the steps {logged[-9:]}"
    return Verdict(
        f"killed in mid-line of metrics.jsonl, gone on with to step {steps:,}",
        outcome,
        "every line once",
        outcome == "every line once",
    )


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [f"| in {result['steps']:,} steps | measured | bound |", "| --- | --- | --- |"]
    lines += ["| {what} | {measured} | {bound} |".format(**row) for row in result["verdicts"]]
    return "\n".join(lines)


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw memory, open files and threads over the steps."""
    from matplotlib import pyplot as plt

    columns = {
        name: [sample[name] for sample in result["samples"]]
        for name in ("step", "rss", "handles", "threads")
    }
    figure, (memory, counts) = plt.subplots(2, figsize=(7, 5), sharex=True, layout="constrained")
    title = f"{result['steps']:,} tiny steps on a CPU"
    memory.plot(columns["step"], [rss / (1 << 20) for rss in columns["rss"]], color="#0072B2", lw=1)
    memory.set(
        ylabel="resident memory (MiB)",
        ylim=(0, None),
        title=title,
    )
    for name, what, color in (
        ("handles", "open files", "#D55E00"),
        ("threads", "threads", "#009E73"),
    ):
        counts.plot(columns["step"], columns[name], color=color, lw=1, label=what)
    counts.set(xlabel="optimizer step", ylabel="number", ylim=(0, None))
    counts.legend(frameon=False)
    for axes in (memory, counts):
        axes.grid(alpha=0.25)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: Arguments) -> None:
    if arguments.table:
        print(table(json.loads(Path(arguments.table).read_text(encoding="utf-8"))))
        return
    if arguments.steps < 300:
        raise ValueError(
            f"--steps {arguments.steps} is too short to see anything: give 300 or more"
        )
    result = soak(arguments.steps)
    if arguments.out:
        write_json(arguments.out, result)
    if arguments.plot:
        plot(result, Path(arguments.plot))
    print(table(result))
    if not all(verdict["kept"] for verdict in result["verdicts"]):
        sys.exit(1)


if __name__ == "__main__":
    run_tool(main, Arguments)
