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
from gpt2.config import GPTConfig, TrainConfig
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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the device or of the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _SENTENCES)


@contextmanager
def oom_advice(advice: Callable[[], str]) -> Iterator[None]:
    """Memory that runs out in this block is an OutOfMemory with this advice."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if isinstance(error, OutOfMemory) or not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"out of memory; {advice()} ({first_line(error)})") from error


def first_line(error: BaseException) -> str:
    """What was said, without what the libraries say of themselves in later lines."""
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def smaller_micro_batch(config: TrainConfig) -> tuple[int, int] | None:
    """A --batch-size of at most half, and the --grad-accum that keeps the step; None: it is 1."""
    size, count = config.batch_size or 1, config.grad_accum or 1
    for smaller in range(size // 2, 0, -1):
        if size * count % smaller == 0:
            return smaller, size * count // smaller
    return None


def what_to_lower(config: TrainConfig, shape: GPTConfig, machine: Machine, *, alone: bool) -> str:
    """What would need less memory, with the estimates of a step as it is and with less.

    Args:
        config: the run, with every setting of the preset filled in.
        shape: its model.
        machine: device and compute type.
        alone: whether one process trains, as --auto-batch needs it.
    """
    options = ["a smaller --preset or --seq-len"]
    if config.recompute == "none":
        options.insert(0, "--recompute block")
    smaller = smaller_micro_batch(config)
    if smaller is not None:
        auto = ", or let --auto-batch do both" if alone and not config.auto_batch else ""
        options.insert(
            0,
            f"a lower --batch-size (now {config.batch_size}; raise --grad-accum to keep the step "
            f"the same{auto})",
        )

    def memory(shape: GPTConfig, batch_size: int, grad_accum: int) -> Memory:
        return training_memory(
            shape,
            batch_size=batch_size,
            seq_len=config.seq_len or shape.block_size,
            dtype=machine.dtype,
            device_type=machine.device.type,
            optimizer=config.optimizer or "adamw",
            grad_accum=grad_accum,
        )

    size, count = config.batch_size or 1, config.grad_accum or 1
    has = device_memory(machine.device)
    of = f", of {human_bytes(has)} on this {machine.device.type}" if has else ""
    text = (
        f"try {', '.join(options)}. By the estimate a step needs: {memory(shape, size, count)}{of}"
    )
    if smaller is not None:
        peak = memory(shape, *smaller).peak
        text += f"; with --batch-size {smaller[0]} --grad-accum {smaller[1]}: {human_bytes(peak)}"
    if config.recompute == "none":
        peak = memory(dataclasses.replace(shape, recompute="block"), size, count).peak
        text += f"; with --recompute block: {human_bytes(peak)}"
    return text
