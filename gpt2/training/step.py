"""The training step that train.py runs and benchmarks time.

A step takes k micro-batches, whose gradients are weighted by their tokens, so that it is exactly
the step of the one large batch: with n_i targets in micro-batch i and n in all, the loss is sum_i
(n_i / n) loss_i. A loss or gradient that is not finite never reaches the weights: the step is
skipped, and says so.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2.common.distributed import all_reduce, world
from gpt2.training.out_of_memory import UpdateOutOfMemory, is_out_of_memory
from gpt2.training.parallel import full_tensor, sync_gradients


@dataclass(frozen=True)
class StepResult:
    """Loss in nats per token, norm of the gradient before clipping, and whether weights changed."""

    loss: float
    grad_norm: float
    skipped: bool


def train_step(
    model: torch.nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    micro_batches: Sequence[tuple[Tensor, Tensor]],
    *,
    clip: float = 1.0,
    autocast: AbstractContextManager[object] | None = None,
    scaler: torch.amp.GradScaler | None = None,
    max_loss: float = math.inf,
) -> StepResult:
    """One optimizer step on all micro-batches together, those of other processes included.

    Args:
        model: a GPT, compiled or not; its gradients must be None or zero, and are None afterwards.
        optimizers: stepped in order, with the learning rates that they hold.
        micro_batches: pairs x, y of shape (B, T), int64, on the model's device.
        clip: largest norm of the gradient; 0 leaves it as it is.
        autocast: context for the forward passes; None computes in fp32.
        scaler: loss scaling, for fp16.
        max_loss: a step with a higher loss is skipped.

    Raises:
        UpdateOutOfMemory: some weights have changed and others have not.
    """
    counts = [(y >= 0).sum() for _, y in micro_batches]
    total = all_reduce(torch.stack(counts).sum())
    loss_sum = torch.zeros((), device=total.device)
    processes = world().size  # DDP and FSDP average the gradients, where the sum is wanted
    for i, ((x, y), count) in enumerate(zip(micro_batches, counts, strict=True)):
        with sync_gradients(model, enabled=i == len(micro_batches) - 1):
            with autocast or nullcontext():
                _, loss = model(x, y)
            part = loss * (count / total)
            loss_sum += part.detach()
            if processes > 1:
                part = part * processes
            (part if scaler is None else scaler.scale(part)).backward()
    all_reduce(loss_sum)

    if scaler is not None:
        for optimizer in optimizers:
            scaler.unscale_(optimizer)
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = full_tensor(torch.nn.utils.clip_grad_norm_(parameters, clip or math.inf))
    loss_value, norm_value = torch.stack([loss_sum, norm]).tolist()  # the one wait for the device
    sound = math.isfinite(loss_value) and math.isfinite(norm_value) and loss_value <= max_loss
    if sound:
        try:
            for optimizer in optimizers:
                optimizer.step() if scaler is None else scaler.step(optimizer)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise UpdateOutOfMemory(str(error)) from error
    if scaler is not None:
        scaler.update()
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    return StepResult(loss_value, norm_value, skipped=not sound)
