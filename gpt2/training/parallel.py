"""Several processes train one model: data parallel, or with sharded weights.

    torchrun --nproc-per-node 4 train.py --data my.txt --preset gpt2 --parallel ddp

A step takes --batch-size x --grad-accum sequences, whatever the number N of processes; each reads
and computes every N-th of them (`gpt2.data.batches`). So the position in the text is the same
everywhere, and a run can go on with another N. The count of targets, the gradients and the loss are
all-reduced.

    ddp    every process holds the whole model (Li et al. 2020, arXiv:2006.15704)
    fsdp   parameters, gradients and optimizer states are sharded, and a layer is gathered while it
           computes (Zhao et al. 2023, arXiv:2304.11277)
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gpt2.common.distributed import world
from gpt2.config import Settings


def check_parallel(settings: Settings, dtype: torch.dtype) -> None:
    """Raise ValueError for a run that these processes cannot train together."""
    size = world().size
    sequences = settings.sequences_per_step
    if sequences % size:
        raise ValueError(
            f"a step of {sequences} sequences (--batch-size x --grad-accum) cannot be shared by "
            f"{size} processes: make their product a multiple of {size}"
        )
    if settings.auto_batch and size > 1:
        raise ValueError(
            f"--auto-batch is for one process, and these are {size}: give --no-auto-batch, and "
            "where memory runs out a lower --batch-size with a higher --grad-accum"
        )
    if settings.parallel == "fsdp":
        if size == 1:
            raise ValueError(
                "--parallel fsdp cuts the model over several processes and this is the only one: "
                "start with `torchrun --nproc-per-node N train.py ...`, or use --parallel ddp"
            )
        for name in ("check_kernels", "sample_every"):
            if getattr(settings, name):
                raise ValueError(
                    f"--{name.replace('_', '-')} needs the whole model, which --parallel fsdp "
                    "cuts: leave it out, or use --parallel ddp"
                )
        if dtype == torch.float16:
            raise ValueError(
                "--dtype fp16 scales the loss, which --parallel fsdp does not support here: "
                "use --dtype bf16, or --parallel ddp"
            )


def wrap(model: nn.Module, mode: str | None, *, compile: bool, device: torch.device) -> nn.Module:
    """Wrap a model for training: in torch.compile if asked, and in DDP or FSDP among several.

    Args:
        model: a GPT. FSDP shards its parameters in place, so optimizers are built afterwards.
        mode: "fsdp", or else DDP; a single process needs neither.
        compile: use torch.compile.
        device: where the model is.

    Returns:
        The module to call.
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
    module = cast(nn.Module, torch.compile(model)) if compile else model
    if world().size == 1:
        return module
    ids = [device] if device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=ids, gradient_as_bucket_view=True)


@contextmanager
def sync_gradients(model: nn.Module, *, enabled: bool) -> Iterator[None]:
    """All-reduce gradients in the backward passes of this block, or only accumulate them.

    A step synchronises once, in its last micro-batch.
    """
    if hasattr(model, "set_requires_gradient_sync"):  # FSDP
        cast(Any, model).set_requires_gradient_sync(enabled)
    ddp = isinstance(model, DistributedDataParallel) and not enabled
    with cast(DistributedDataParallel, model).no_sync() if ddp else nullcontext():
        yield


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor in every process, all of which must call; others stay as they are."""
    return cast(Any, tensor).full_tensor() if _is_sharded(tensor) else tensor


def full_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gather named tensors in the main process; the others take part, and get an empty dict.

    Those that were sharded come to the CPU, so that no device holds the whole model.
    """
    result = {}
    for name, tensor in tensors.items():
        whole = full_tensor(tensor)
        if world().main:
            result[name] = whole.cpu() if _is_sharded(tensor) else whole
    return result


def distribute_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Shard a whole tensor as `like` is sharded; return it as it is where `like` is whole."""
    if not _is_sharded(like) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    own: Any = like
    return distribute_tensor(tensor.to(like.device), own.device_mesh, own.placements)


def _is_sharded(tensor: Tensor) -> bool:
    """Tell a DTensor without importing its module, which takes seconds."""
    return hasattr(tensor, "full_tensor")
