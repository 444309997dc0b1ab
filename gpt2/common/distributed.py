"""The processes of one training, as torchrun starts them: who is where, and what they exchange."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

T = TypeVar("T")


# Other processes may wait for one that evaluates or writes a checkpoint; a dead one is noticed by
# torchrun, not by this.
_TIMEOUT = timedelta(hours=1)


@dataclass(frozen=True)
class World:
    """Which of how many processes this is, and its place on its own machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def main(self) -> bool:
        """The process that speaks and writes."""
        return self.rank == 0


def world() -> World:
    """This process as torchrun numbers it; alone without torchrun."""
    numbers = (os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    rank, size, local_rank = (int(number) if number else None for number in numbers)
    return World(rank or 0, size or 1, local_rank or 0)


@contextmanager
def process_group() -> Iterator[World]:
    """Meet the other processes that torchrun started, if any, for the length of the block."""
    here = world()
    if here.size == 1:
        yield here
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(here.local_rank % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=_TIMEOUT)
    try:
        yield here
    finally:
        destroy_process_group()


def broadcast(decide: Callable[[], T]) -> T:
    """What the main process decides, in every process."""
    here = world()
    if here.size == 1:
        return decide()
    box: list[Any] = [decide() if here.main else None]
    dist.broadcast_object_list(box, src=0)
    return cast(T, box[0])


def all_gather(value: T) -> list[T]:
    """The `value` of every process, by rank."""
    here = world()
    if here.size == 1:
        return [value]
    box: list[Any] = [None] * here.size
    dist.all_gather_object(box, value)
    return box


def all_reduce(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over all processes, in place."""
    if world().size > 1:
        dist.all_reduce(tensor)
    return tensor


def all_reduce_max(number: int) -> int:
    """The highest `number` of all processes."""
    if world().size == 1:
        return number
    box = torch.tensor(number)
    dist.all_reduce(box, op=dist.ReduceOp.MAX)
    return int(box)


def destroy_process_group() -> None:
    """Leave the other processes: from here on each works alone."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def say(line: str) -> None:
    """Print a line, once for all processes, without tearing a progress bar apart."""
    if world().main:
        tqdm.write(line)
