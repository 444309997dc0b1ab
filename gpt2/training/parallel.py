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

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gpt2.common.distributed import World, world
from gpt2.config import TrainConfig


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


def shard(
    micro_batches: Sequence[tuple[Tensor, Tensor]], here: World
) -> list[tuple[Tensor, Tensor]]:
    """What this process computes of a step: each N-th sequence, in micro-batches of the same B."""
    if here.size == 1:
        return list(micro_batches)
    size = len(micro_batches[0][0])
    xs, ys = zip(*micro_batches, strict=True)
    x, y = (torch.cat(tensors)[here.rank :: here.size] for tensors in (xs, ys))
    return list(zip(x.split(size), y.split(size), strict=True))


def wrap(model: nn.Module, mode: str | None, *, compile: bool, device: torch.device) -> nn.Module:
    """The module to call in training: compiled if asked, and joined to those of the others.

    Args:
        model: a GPT; with "fsdp" its parameters are cut in place, so optimizers are built after.
        mode: "fsdp", or else DDP; one process alone needs neither.
        compile: use torch.compile.
        device: where the model is.
    """
    if world().size > 1 and mode == "fsdp":
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        for layer in model.get_submodule("h").children():
            layer = cast(Any, layer)
            if compile:
                layer.forward_fused = torch.compile(layer.forward_fused)
            fully_shard(layer)
            register_fsdp_forward_method(layer, "forward_fused")
        fully_shard(model)
        return model
    called = cast(nn.Module, torch.compile(model)) if compile else model
    if world().size == 1:
        return called
    ids = [device] if device.type == "cuda" else None
    return DistributedDataParallel(called, device_ids=ids, gradient_as_bucket_view=True)


@contextmanager
def sync_gradients(model: nn.Module, now: bool) -> Iterator[None]:
    """Whether backward passes in this block communicate: once a step is enough."""
    sync: Any = getattr(model, "set_requires_gradient_sync", None)
    if sync is not None:  # sharded
        sync(now)
    alone = isinstance(model, DistributedDataParallel) and not now
    with cast(DistributedDataParallel, model).no_sync() if alone else nullcontext():
        yield


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor of which this process may hold a part; every process must ask."""
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def full_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` with each cut one put together, on the CPU of the main process.

    The others take part and are left with none: a machine holds the whole once.
    """
    result = {}
    for name, tensor in tensors.items():
        cut = hasattr(tensor, "full_tensor")
        put_together = full_tensor(tensor)
        if world().main:
            result[name] = put_together.cpu() if cut else put_together
    return result


def distribute_like(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole `tensor`, cut as `like` is."""
    if not hasattr(like, "device_mesh") or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh: Any = like
    return distribute_tensor(tensor.to(like.device), mesh.device_mesh, mesh.placements)


def distribute_tensors_like(
    tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """`part_like` by name."""
    return {
        name: distribute_like(tensor, like[name])
        for name, tensor in tensors.items()
        if name in like
    }
