"""Peak memory of a training step on a CPU, where no allocator can be asked (Linux only).

A process of its own imports everything, trains a tiny model to load what is loaded late, and sets
its high-water mark of resident memory back. What the mark then rises by, over what is resident at
that moment, is what the measured training needs: weights, gradients, optimizer, activations.
"""

import multiprocessing
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from bench.harness.training_steps import Problem, Recipe, Step
from gpt2.config import PRESETS

STEPS = 2  # the first one makes the optimizer's states
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident_memory(problem: Problem, recipe: Recipe) -> int | None:
    """Bytes that training with `recipe` adds to a process; None where Linux does not tell them."""
    if not _RESET.exists():
        return None
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(
        target=_measure, args=(sender, problem, recipe, torch.get_num_threads()), daemon=True
    )
    child.start()
    sender.close()
    try:
        grown: int | None = receiver.recv()
        return grown
    except EOFError:
        raise RuntimeError("the process that measures memory ended early") from None
    finally:
        child.join()


def _measure(sender: Connection, problem: Problem, recipe: Recipe, threads: int) -> None:
    torch.set_num_threads(threads)
    Step(replace(problem, shape=PRESETS["demo"], B=1, T=8), recipe).run()
    try:
        _RESET.write_text("5")  # sets VmHWM to VmRSS, see proc(5)
    except OSError:
        sender.send(None)
        return
    before = _kilobytes("VmRSS")
    step = Step(problem, recipe)
    for _ in range(STEPS):
        step.run()
    sender.send(1024 * (_kilobytes("VmHWM") - before))


def _kilobytes(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise RuntimeError(f"{_STATUS} has no {field}")
