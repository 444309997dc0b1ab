"""Several processes train one model: data parallel, or with sharded weights.

    torchrun --nproc-per-node 4 train.py --data my.txt --preset gpt2 --parallel ddp

A step takes the sequences that the user asked for, --batch-size x --grad-accum of them, whatever
the number N of processes: every process draws them all, as one process would, and computes each
N-th. So the position in the data is the same everywhere, nothing is read twice or left out, and a
run can go on with another N. What a step needs to agree on is summed over the processes: the count
of targets, the gradients, the loss.

    ddp    every process holds the whole model; gradients are summed (Li et al. 2020,
           arXiv:2006.15704)
    fsdp   parameters, gradients and optimizer states are cut over the processes, and a layer is
           put together while it computes (Zhao et al. 2023, arXiv:2304.11277)
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gpt2.checkpoint import random_state, set_random_state
from gpt2.config import TrainConfig
from gpt2.data.batches import IGNORE

T = TypeVar("T")
# Other processes may wait for one that evaluates or writes a checkpoint; a dead one is noticed by
# torchrun, not by this.
_PATIENCE = timedelta(hours=1)


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
def joined() -> Iterator[World]:
    """Meet the other processes that torchrun started, if any, for the length of the block."""
    here = world()
    if here.size == 1:
        yield here
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(here.local_rank % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield here
    finally:
        separate()


def agree(decide: Callable[[], T]) -> T:
    """What the main process decides, in every process."""
    here = world()
    if here.size == 1:
        return decide()
    box: list[Any] = [decide() if here.main else None]
    dist.broadcast_object_list(box, src=0)
    return cast(T, box[0])


def gathered(value: T) -> list[T]:
    """The `value` of every process, by rank."""
    here = world()
    if here.size == 1:
        return [value]
    box: list[Any] = [None] * here.size
    dist.all_gather_object(box, value)
    return box


def summed(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over all processes, in place."""
    if world().size > 1:
        dist.all_reduce(tensor)
    return tensor


def highest(number: int) -> int:
    """The highest `number` of all processes."""
    if world().size == 1:
        return number
    box = torch.tensor(number)
    dist.all_reduce(box, op=dist.ReduceOp.MAX)
    return int(box)


def separate() -> None:
    """Leave the other processes: from here on each works alone."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def check_parallel(config: TrainConfig, dtype: torch.dtype) -> None:
    """Raise ValueError for a run that the processes at hand cannot share."""
    size = world().size
    sequences = (config.batch_size or 1) * (config.grad_accum or 1)
    if sequences % size:
        raise ValueError(
            f"a step of {sequences} sequences (--batch-size x --grad-accum) cannot be shared by "
            f"{size} processes: make their product a multiple of {size}"
        )
    if config.parallel == "fsdp":
        if size == 1:
            raise ValueError(
                "--parallel fsdp cuts the model over several processes and this is the only one: "
                "start with `torchrun --nproc-per-node N train.py ...`, or use --parallel ddp"
            )
        if config.optimizer == "muon":
            raise ValueError(
                "--optimizer muon needs whole matrices, which --parallel fsdp cuts: "
                "use --parallel ddp, or --optimizer adamw"
            )
        if config.check_kernels:
            raise ValueError(
                "--check-kernels needs the whole model, which --parallel fsdp cuts: check on one "
                "process, or with --parallel ddp"
            )
        if dtype == torch.float16:
            raise ValueError(
                "--dtype fp16 scales the loss, which --parallel fsdp does not support here: "
                "use --dtype bf16, or --parallel ddp"
            )


def share(
    micro_batches: Sequence[tuple[Tensor, Tensor]], here: World
) -> list[tuple[Tensor, Tensor]]:
    """What this process computes of a step: each N-th sequence, in micro-batches of the same B."""
    if here.size == 1:
        return list(micro_batches)
    size = len(micro_batches[0][0])
    xs, ys = zip(*micro_batches, strict=True)
    x, y = (torch.cat(tensors)[here.rank :: here.size] for tensors in (xs, ys))
    return list(zip(x.split(size), y.split(size), strict=True))


def share_windows(x: Tensor, y: Tensor, here: World) -> tuple[Tensor, Tensor]:
    """This process's windows of a batch (B, T) to be scored, and at least one to run.

    Processes with a part of the model each must all run it: one that is left without a window gets
    one with no target.
    """
    own_x, own_y = x[here.rank :: here.size], y[here.rank :: here.size]
    if not len(own_x):
        own_x, own_y = x[:1], torch.full_like(y[:1], IGNORE)
    return own_x, own_y


def spread(model: nn.Module, mode: str | None, *, compile: bool, device: torch.device) -> nn.Module:
    """The module to call in training: compiled if asked, and joined to those of the others.

    Args:
        model: a GPT; with "fsdp" its parameters are cut in place, so optimizers are built after.
        mode: "fsdp", or else DDP; one process alone needs neither.
        compile: use torch.compile.
        device: where the model is.
    """
    if world().size > 1 and mode == "fsdp":
        from torch.distributed.fsdp import fully_shard

        for layer in model.get_submodule("h").children():
            if compile:
                layer.compile()
            fully_shard(layer)
        fully_shard(model)
        return model
    called = cast(nn.Module, torch.compile(model)) if compile else model
    if world().size == 1:
        return called
    ids = [device] if device.type == "cuda" else None
    return DistributedDataParallel(called, device_ids=ids, gradient_as_bucket_view=True)


@contextmanager
def gradients_meet(model: nn.Module, now: bool) -> Iterator[None]:
    """Whether backward passes in this block communicate: once a step is enough."""
    sync: Any = getattr(model, "set_requires_gradient_sync", None)
    if sync is not None:  # sharded
        sync(now)
    alone = isinstance(model, DistributedDataParallel) and not now
    with cast(DistributedDataParallel, model).no_sync() if alone else nullcontext():
        yield


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which this process may hold a part; every process must ask."""
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def whole_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` with each cut one put together, on the CPU of the main process.

    The others take part and are left with none: a machine holds the whole once.
    """
    result = {}
    for name, tensor in tensors.items():
        cut = hasattr(tensor, "full_tensor")
        put_together = whole(tensor)
        if world().main:
            result[name] = put_together.cpu() if cut else put_together
    return result


def part_like(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole `tensor`, cut as `like` is."""
    if not hasattr(like, "device_mesh") or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh: Any = like
    return distribute_tensor(tensor.to(like.device), mesh.device_mesh, mesh.placements)


def parts_like(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`part_like` by name."""
    return {name: part_like(tensor, like[name]) for name, tensor in tensors.items() if name in like}


def random_states() -> dict[str, Tensor]:
    """The random state of every process; names of process r > 0 begin with "r/"."""
    return {
        f"{rank}/{name}" if rank else name: tensor
        for rank, state in enumerate(gathered(random_state()))
        for name, tensor in state.items()
    }


def set_random_states(states: Mapping[str, Tensor], *, seed: int) -> None:
    """Put back this process's own state; one that was not there before begins with a new seed."""
    rank = world().rank
    prefix = f"{rank}/" if rank else ""
    own = {n.removeprefix(prefix): tensor for n, tensor in states.items() if n.startswith(prefix)}
    if own:
        set_random_state(own)
    else:
        torch.manual_seed(seed + rank)
