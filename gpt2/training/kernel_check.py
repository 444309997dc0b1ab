"""Is a kernel to blame? One micro-batch's gradients by each kernel, against PyTorch's own.

`--check-kernels N` does this every N steps of a run: for each kernel that is not PyTorch's portable
one (attention, norms, MLP, loss) the gradients g are computed with that one and all others
PyTorch's, and the largest relative difference from g', those with PyTorch's throughout, is
reported,

    error = max over loss and parameters of |g - g'| / |g'|   (Euclidean norms, without dropout)

A sound kernel differs by rounding: some 1e-6 in fp32, 1e-2 in 16 bits.
"""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from gpt2.common.distributed import say
from gpt2.config import PORTABLE
from gpt2.model import GPT
from gpt2.training.machine import Machine

SUSPICIOUS = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
"""Relative gradient errors by compute type that rounding does not explain."""


def check_kernels(
    model: GPT, x: Tensor, y: Tensor, *, machine: Machine, step: int, loss_scale: float = 1.0
) -> dict[str, float]:
    """Print how far each kernel is from PyTorch's, and return it as metrics of the step.

    Arguments are those of `kernel_errors`.
    """
    errors = kernel_errors(model, x, y, autocast=machine.autocast(), loss_scale=loss_scale)
    for name, error in errors.items():
        verdict = ""
        if math.isnan(error):
            verdict = ", but PyTorch's are not finite either: this kernel is not to blame"
        elif error > SUSPICIOUS[machine.dtype]:
            verdict = ": more than rounding explains, do not trust this kernel"
        say(
            f"step {step}: {name} {getattr(model.config, name)} against PyTorch's: "
            f"gradients differ by {error:.1e}{verdict}"
        )
    return {f"kernel_error/{name}": error for name, error in errors.items()}


def kernel_errors(
    model: GPT,
    x: Tensor,
    y: Tensor,
    *,
    autocast: AbstractContextManager[object] | None = None,
    loss_scale: float = 1.0,
) -> dict[str, float]:
    """Return the relative gradient error of each kernel that replaces PyTorch's.

    Args:
        model: left as it came: its mode, its kernels, and gradients of None.
        x, y: a micro-batch (B, T), int64, on the model's device.
        autocast: context for the forward passes.
        loss_scale: factor of the loss, without which gradients vanish in fp16.

    Returns:
        Error by option (attn, norm_kernel, mlp_kernel, loss_kernel); infinite where only the
        kernel's gradient is not finite, NaN where PyTorch's is not either. Empty when all kernels
        are the portable ones.
    """
    chosen = {name: getattr(model.config, name) for name in PORTABLE}
    was_training = model.training
    model.eval()  # dropout masks differ between kernels
    try:
        doubted = [name for name, portable in PORTABLE.items() if chosen[name] != portable]
        if not doubted:
            return {}
        model.use(**PORTABLE)
        reference = _gradients(model, x, y, autocast, loss_scale)
        errors = {}
        for name in doubted:
            model.use(**(PORTABLE | {name: chosen[name]}))
            errors[name] = _worst(_gradients(model, x, y, autocast, loss_scale), reference)
        return errors
    finally:
        model.use(**chosen)
        model.train(was_training)


def _gradients(
    model: GPT,
    x: Tensor,
    y: Tensor,
    autocast: AbstractContextManager[object] | None,
    loss_scale: float,
) -> list[Tensor]:
    """Return the loss and its gradients, those times the loss scale."""
    with autocast or nullcontext():
        _, loss = model(x, y)
    assert loss is not None
    return [loss.detach(), *torch.autograd.grad(loss * loss_scale, list(model.parameters()))]


def _worst(own: list[Tensor], reference: list[Tensor]) -> float:
    worst = 0.0
    for g, expected in zip(own, reference, strict=True):
        difference, size = float((g - expected).norm()), float(expected.norm())
        if not math.isfinite(size):
            return math.nan
        error = difference / size if size else (math.inf if difference else 0.0)
        worst = max(worst, math.inf if math.isnan(error) else error)
    return worst
