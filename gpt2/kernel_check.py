"""Is a kernel to blame? One micro-batch's gradients, with each kernel exchanged for PyTorch's own.

`--check-kernels N` does this every N steps of a run: for each kernel that is not PyTorch's portable
one (attention, norms, MLP, loss) the gradients are computed again with only that one exchanged, and
the largest relative difference over all parameters is reported,

    error = max over parameters of |g - g'| / |g'|      (Euclidean norms, without dropout)

A sound kernel differs by rounding: some 1e-6 in fp32, 1e-2 in 16 bits.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from gpt2.config import PORTABLE
from gpt2.model import GPT

SUSPICIOUS = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
"""Relative gradient errors by compute type that rounding does not explain."""


def kernel_errors(
    model: GPT,
    x: Tensor,
    y: Tensor,
    *,
    autocast: AbstractContextManager[object] | None = None,
) -> dict[str, float]:
    """The relative gradient error of each kernel that the model runs with instead of PyTorch's.

    Args:
        model: left as it came: its mode, its kernels, and gradients of None.
        x, y: a micro-batch (B, T), int64, on the model's device.
        autocast: context for the forward passes.

    Returns:
        Error by option (attn, norm_kernel, mlp_kernel, loss_kernel); infinite where a gradient is
        not finite. Empty when all kernels are the portable ones.
    """
    chosen = {name: getattr(model.config, name) for name in PORTABLE}
    was_training = model.training
    model.eval()  # dropout masks differ between kernels
    try:
        own = _gradients(model, x, y, autocast)
        errors = {}
        for name, portable in PORTABLE.items():
            if chosen[name] != portable:
                model.use(**{name: portable})
                errors[name] = _worst(own, _gradients(model, x, y, autocast))
                model.use(**chosen)
        return errors
    finally:
        model.use(**chosen)
        model.train(was_training)


def _gradients(
    model: GPT, x: Tensor, y: Tensor, autocast: AbstractContextManager[object] | None
) -> list[Tensor]:
    with autocast or nullcontext():
        _, loss = model(x, y)
    assert loss is not None
    return list(torch.autograd.grad(loss, list(model.parameters())))


def _worst(own: list[Tensor], reference: list[Tensor]) -> float:
    worst = 0.0
    for g, expected in zip(own, reference, strict=True):
        difference, size = float((g - expected).norm()), float(expected.norm())
        error = difference / size if size else (torch.inf if difference else 0.0)
        worst = max(worst, error if error == error else torch.inf)
    return worst
