"""Peak memory of a training step on a CPU, by the resident memory of a process (Linux only).

A new process imports everything, trains a tiny model, which loads libraries that are loaded late,
and resets its high-water mark of resident memory. The rise of the mark over the memory resident at
that moment is the need of the measured training: weights, gradients, optimizer, activations.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from bench.harness.training_steps import Problem, Recipe, Step
from gpt2.config import PRESETS

STEPS = 2  # the first one makes the optimizer's states
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident_memory(problem: Problem, recipe: Recipe) -> int | None:
    """Bytes that training with `recipe` adds to a process; None if the system cannot tell."""
    if not _RESET.exists():
        return None
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, problem, recipe, torch.get_num_threads()).result()


def _measure(problem: Problem, recipe: Recipe, threads: int) -> int | None:
    torch.set_num_threads(threads)
    Step(replace(problem, shape=PRESETS["demo"], B=1, T=8), recipe).run()
    try:
        _RESET.write_text("5")  # sets VmHWM to VmRSS, see proc(5)
    except OSError:
        return None
    before = _kilobytes("VmRSS")
    step = Step(problem, recipe)
    for _ in range(STEPS):
        step.run()
    return 1024 * (_kilobytes("VmHWM") - before)


def _kilobytes(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise RuntimeError(f"{_STATUS} has no {field}")
