"""Tokens per second of training, evaluation and generation beside another busy process (Linux).

    python -m bench.busy --out bench/results/<device>/busy/<date>-<commit>.json

Every way of waiting is a process of its own, and they take turns: on an idle machine, beside a
niced `yes`, and beside `yes`. `libgomp` is that library's default, as a number of spins, which our
code leaves as it is; `ours` is what the commands do; the others are what the
environment can choose. The demo model, random tokens, float32. The file holds every turn; printed
is a table of the medians. The ratios are medians of those to the turn of the first way in the same
round, as the machine drifts from round to round.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import environ
from pathlib import Path
from typing import cast

import torch

from bench.harness import markdown
from bench.harness.results import ROOT, commit, device_name, versions
from bench.harness.training_steps import Problem, Recipe, Step
from gpt2.common.files import write_json
from gpt2.common.load import CHOICES, SLEEP, sleeping_under_load
from gpt2.config import PRESETS
from gpt2.generate.decoding import continuations
from gpt2.generate.sampling import Sampling
from gpt2.model import GPT

WAYS = {
    "libgomp": {"GOMP_SPINCOUNT": "300000"},
    "ours": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "1,000 spins": {"GOMP_SPINCOUNT": "1000"},
    "10,000 spins": {"GOMP_SPINCOUNT": "10000"},
    "bound": {"GOMP_SPINCOUNT": "300000", "OMP_PROC_BIND": "true"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
# In this order, as `ours` may go on sleeping for a while after the last.
LOADS = {"idle": [], "niced": ["nice", "-n", "19", "yes"], "busy": ["yes"]}
TASKS = ("train", "evaluate", "generate")
BATCH = (16, 128)  # sequences and their length
ROUNDS = 5
SECONDS = 0.5  # of a turn, at least, after as long a warm-up; a step that has begun is ended


@dataclass(frozen=True)
class Arguments:
    """Measure how the speed of training, evaluation and generation suffers from other processes."""

    out: Path | None = None
    """Write every turn to this .json file."""
    ways: tuple[str, ...] = tuple(WAYS)
    """The ways of waiting to measure; the first is what the others are compared with."""


Rates = dict[str, dict[str, dict[str, list[float]]]]  # by task, load and way


def main(arguments: Arguments) -> None:
    rates: Rates = {t: {load: {w: [] for w in arguments.ways} for load in LOADS} for t in TASKS}
    workers = {way: _start(WAYS[way]) for way in arguments.ways}
    for round_ in range(ROUNDS):
        for load in LOADS:
            with _beside(load):
                for task in TASKS:
                    for way in list(workers)[:: -1 if round_ % 2 else 1]:
                        rates[task][load][way].append(_ask(workers[way], task))
    for worker in workers.values():
        worker.communicate()  # its input ends, and so does it
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        cpu = torch.device("cpu")
        about = {"device": device_name(cpu), "commit": commit(), "versions": versions()}
        write_json(arguments.out, about | {"tokens_per_s": rates})
    print(table(rates))


def table(rates: Rates) -> str:
    """Markdown: a line per task and load, a column per way; medians and ratios to the first way."""
    ways = list(rates[TASKS[0]]["idle"])
    lines = []
    for task, loads in rates.items():
        for load, found in loads.items():
            first, *others = found.values()
            cells = [f"{statistics.median(first):,.0f}"]
            for turns in others:
                ratio = statistics.median(t / f for t, f in zip(turns, first, strict=True))
                cells.append(f"{statistics.median(turns):,.0f} (x {ratio:.2f})")
            lines.append([f"{task}, {load}", *cells])
    return "\n".join(markdown.table(["tokens/s", *ways], lines))


@contextmanager
def _beside(load: str) -> Iterator[None]:
    if not LOADS[load]:
        time.sleep(SLEEP + 1)  # until no process thinks of the load before
        yield
        return
    with subprocess.Popen(LOADS[load], stdout=subprocess.DEVNULL) as other:
        try:
            yield
        finally:
            other.kill()


def _start(way: dict[str, str]) -> "subprocess.Popen[str]":
    """Start a process that measures, and wait until it is ready."""
    clean = {name: value for name, value in environ.items() if name not in CHOICES}
    clean.pop("OMP_NUM_THREADS", None)
    worker = subprocess.Popen(
        [sys.executable, "-c", f"from bench.busy import _work; _work({BATCH}, {SECONDS})"],
        cwd=ROOT,
        env=clean | way,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    for task in TASKS:
        _ask(worker, task)
    return worker


def _ask(worker: "subprocess.Popen[str]", task: str) -> float:
    assert worker.stdin is not None
    assert worker.stdout is not None
    print(task, file=worker.stdin, flush=True)
    return float(worker.stdout.readline())


def _work(batch: tuple[int, int], seconds: float) -> None:
    """Answer each task named on stdin with the tokens per second that it makes."""
    problem = Problem("demo", PRESETS["demo"], *batch, torch.device("cpu"), torch.float32)
    step = Step(problem, Recipe("ours"))
    model = cast(GPT, step.training.model)  # it has no dropout

    def evaluate() -> None:
        with torch.no_grad():
            model(*step.batch)

    def generate() -> None:
        continuations(model, [[0]], 32, sampling=Sampling())

    calls: dict[str, tuple[int, Callable[[], object]]] = {
        "train": (problem.tokens, step.run),
        "evaluate": (problem.tokens, evaluate),
        "generate": (32, generate),
    }
    with sleeping_under_load():
        for line in sys.stdin:
            tokens, call = calls[line.strip()]
            for _ in range(2):  # the first warms up, and sees the load
                began, count = time.perf_counter(), 0
                while (spent := time.perf_counter() - began) < seconds:
                    call()
                    count += 1
            print(f"{count * tokens / spent:.1f}", flush=True)


if __name__ == "__main__":
    from gpt2.common.cli import run_tool

    run_tool(main, Arguments)
