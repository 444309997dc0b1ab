"""Peak memory of a training step on a CPU, by the resident memory of a process (Linux only).

A new process imports everything, trains a tiny model, which loads libraries that are loaded late,
and resets its high-water mark of resident memory. The rise of the mark over the memory resident at
that moment is the need of the measured training: weights, gradients, optimizer, activations.
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
    """Bytes that training with `recipe` adds to a process; None if the system cannot tell."""
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
