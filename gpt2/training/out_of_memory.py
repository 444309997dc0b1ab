"""Memory that runs out: recognised in all its forms, and answered with what the user can lower.

PyTorch has an exception of its own for accelerators only. On a CPU its allocator, its mapping of
files and the libraries below raise a RuntimeError with a sentence in it, the system gives OSErrors,
Python and NumPy a MemoryError.
"""

import dataclasses
import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from gpt2.common.devices import device_memory, human_bytes
from gpt2.config import GPTConfig, Settings
from gpt2.training.estimate import Memory, training_memory
from gpt2.training.machine import Machine

_SENTENCES = (
    "can't allocate memory",
    "cannot allocate memory",
    "out of memory",
    "alloc_failed",
    "bad_alloc",
)


class OutOfMemory(MemoryError):
    """Something does not fit the memory; the message says what would."""


class UpdateOutOfMemory(MemoryError):
    """Memory ran out in the update of the weights: half made, it cannot be repeated."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory ran out, of the device or of the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _SENTENCES)


@contextmanager
def oom_advice(advice: Callable[[], str]) -> Iterator[None]:
    """Raise OutOfMemory with this advice where memory runs out in the block."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if isinstance(error, OutOfMemory) or not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"out of memory; {advice()} ({first_line(error)})") from error


def first_line(error: BaseException) -> str:
    """Return the first line of a message; PyTorch's later ones are about its allocator."""
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def smaller_micro_batch(settings: Settings) -> tuple[int, int] | None:
    """Return at most half the --batch-size, and the --grad-accum that keeps the step.

    None if the batch size is 1.
    """
    total = settings.sequences_per_step
    for smaller in range(settings.batch_size // 2, 0, -1):
        if total % smaller == 0:
            return smaller, total // smaller
    return None


def what_to_lower(settings: Settings, shape: GPTConfig, machine: Machine, *, alone: bool) -> str:
    """Say what would need less memory, with the estimates of a step as it is and with less.

    Args:
        settings: of the run.
        shape: its model.
        machine: device and compute type.
        alone: whether one process trains, as --auto-batch needs it.
    """
    options = ["a smaller --preset or --seq-len"]
    if settings.recompute == "none":
        options.insert(0, "--recompute block")
    smaller = smaller_micro_batch(settings)
    if smaller is not None:
        auto = ", or let --auto-batch do both" if alone and not settings.auto_batch else ""
        options.insert(
            0,
            f"a lower --batch-size (now {settings.batch_size}; raise --grad-accum to keep the step "
            f"the same{auto})",
        )

    text = (
        f"try {', '.join(options)}. By the estimate a step needs: "
        f"{step_memory(settings, shape, machine)}{of_memory(machine)}"
    )
    if smaller is not None:
        size, count = smaller
        less = dataclasses.replace(settings, batch_size=size, grad_accum=count)
        peak = human_bytes(step_memory(less, shape, machine).peak)
        text += f"; with --batch-size {size} --grad-accum {count}: {peak}"
    if settings.recompute == "none":
        less_kept = dataclasses.replace(shape, recompute="block")
        peak = human_bytes(step_memory(settings, less_kept, machine).peak)
        text += f"; with --recompute block: {peak}"
    return text


def step_memory(settings: Settings, shape: GPTConfig, machine: Machine) -> Memory:
    """Estimate the memory of a training step of a run."""
    return training_memory(
        shape,
        batch_size=settings.batch_size,
        seq_len=settings.seq_len,
        dtype=machine.dtype,
        device_type=machine.device.type,
        optimizer=settings.optimizer,
        grad_accum=settings.grad_accum,
    )


def of_memory(machine: Machine) -> str:
    """Say of how much memory that would be; nothing where the device cannot be asked."""
    has = device_memory(machine.device)
    return f", of {human_bytes(has)} on this {machine.device.type}" if has else ""
