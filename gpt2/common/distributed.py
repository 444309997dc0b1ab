"""Distributed training under torchrun: rank and world size, the process group, collectives."""

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
# Kept, since DDP may hold a group longest: it would end the group's threads under Python's lock,
# for which they may be waiting.
_destroyed: list[Any] = []


@dataclass(frozen=True)
class World:
    """Rank of this process, number of processes, and rank on its own machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def main(self) -> bool:
        """True in the process that prints and writes files, rank 0."""
        return self.rank == 0


def world() -> World:
    """Rank and world size as set by torchrun; a single process without it.

    Raises:
        ValueError: they are no numbers, or there is no such rank: left over from something else.
    """
    defaults = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    found = {name: os.environ.get(name) or default for name, default in defaults.items()}
    if not all(number.isdecimal() for number in found.values()) or not (
        int(found["RANK"]) < int(found["WORLD_SIZE"])
    ):
        given = " ".join(f"{name}={number}" for name, number in found.items())
        raise ValueError(
            f"{given} in the environment is no place among processes: start them with torchrun, "
            "or unset these variables"
        )
    return World(*map(int, found.values()))


@contextmanager
def process_group() -> Iterator[World]:
    """Initialize the default process group for the block, if there is more than one process."""
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
    """Call `decide` in rank 0 and return its (picklable) value in every process."""
    here = world()
    if here.size == 1:
        return decide()
    box: list[Any] = [decide() if here.main else None]
    dist.broadcast_object_list(box, src=0)
    return cast(T, box[0])


def all_gather(value: T) -> list[T]:
    """Gather the (picklable) `value` of every process, in order of rank."""
    here = world()
    if here.size == 1:
        return [value]
    box: list[Any] = [None] * here.size
    dist.all_gather_object(box, value)
    return box


def all_reduce(tensor: Tensor) -> Tensor:
    """Sum `tensor` over all processes, in place, and return it."""
    if world().size > 1:
        dist.all_reduce(tensor)
    return tensor


def all_reduce_max(tensor: Tensor) -> Tensor:
    """Take the maximum of each number over all processes, in place, and return the tensor."""
    if world().size > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor


def destroy_process_group() -> None:
    """Destroy the process group, if there is one: each process goes on alone."""
    if dist.is_available() and dist.is_initialized():
        _destroyed.append(dist.group.WORLD)
        dist.destroy_process_group()


def say(line: str) -> None:
    """Print a line in rank 0 only, above any progress bar."""
    if world().main:
        tqdm.write(line)
