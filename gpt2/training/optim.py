"""Optimizers, their parameter groups, and the learning rate schedule."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from gpt2.config import Optimizer
from gpt2.training.parallel import distribute_like


def learning_rate(step: int, *, steps: int, warmup_steps: int, lr: float, min_lr: float) -> float:
    """Return the learning rate of optimizer step `step` (counted from 0) of a run of `steps`.

    Linear warm-up to `lr` over `warmup_steps`, whose first step already moves, then half a cosine
    down to `min_lr` at the last step; `min_lr` from there on. Source: Loshchilov and Hutter 2017,
    arXiv:1608.03983.
    """
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps + 1) / max(1, steps - warmup_steps))
    return min_lr + 0.5 * (lr - min_lr) * (1 + math.cos(math.pi * progress))


def build_optimizers(
    model: nn.Module,
    *,
    lr: float,
    optimizer: Optimizer = "adamw",
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
    dtype: torch.dtype = torch.float32,
) -> list[torch.optim.Optimizer]:
    """Build AdamW over all parameters, or Muon over the hidden matrices and AdamW over the rest.

    Matrices decay; norms and biases do not. `dtype` is what the model computes in, and Muon with
    it. Source: Loshchilov and Hutter 2019, arXiv:1711.05101.
    """
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    optimizers: list[torch.optim.Optimizer] = []
    if optimizer == "muon":
        hidden = [p for n, p in named if n.startswith("h.") and p.ndim == 2]
        optimizers.append(Muon(hidden, lr=lr, weight_decay=weight_decay, dtype=dtype))
        taken = {id(p) for p in hidden}
        named = [(n, p) for n, p in named if id(p) not in taken]
    groups = [
        {"params": [p for _, p in named if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = named[0][1].device.type in ("cpu", "cuda")
    adamw = torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, fused=fused)
    return [*optimizers, adamw]


def iterate_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return what Muon's iterates are in, in a model that computes in `dtype`."""
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32


class Muon(torch.optim.Muon):
    """Muon as in PyTorch, with iterates in bfloat16 only where the model computes in it.

    PyTorch's are always in bfloat16, whose products a processor without instructions for them
    computes at a fraction of the speed of float32: of a whole training step on such a CPU Muon
    took four fifths. The learning rate is adjusted so that updates have the size of AdamW's, and
    one --lr serves both. Sources: Jordan et al. 2024; Liu et al. 2025, arXiv:2502.16982.
    """

    def __init__(
        self, params: Iterable[Tensor], *, lr: float, weight_decay: float, dtype: torch.dtype
    ) -> None:
        super().__init__(params, lr, weight_decay, adjust_lr_fn="match_rms_adamw")
        self.dtype = iterate_dtype(dtype)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p.grad)
                average = state["momentum_buffer"].lerp_(p.grad, 1 - momentum)
                update = p.grad.lerp(average, momentum).to(self.dtype)
                update = _orthogonal(update, group["ns_coefficients"], group["ns_steps"])
                p.mul_(1 - lr * group["weight_decay"])
                p.add_(update, alpha=-lr * 0.2 * math.sqrt(max(p.shape)))


def _orthogonal(x: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """Return U V^T, nearly, of x = U S V^T, (m, n), by Newton and Schulz's iteration."""
    a, b, c = coefficients
    if x.shape[0] > x.shape[1]:
        return _orthogonal(x.T, coefficients, steps).T
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def set_learning_rate(optimizers: Iterable[torch.optim.Optimizer], lr: float) -> None:
    """Set the learning rate of every parameter group."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr


def optimizer_tensors(
    model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]
) -> dict[str, Tensor]:
    """Name the tensors of the optimizers' state "<parameter>/<buffer>", as "wte.weight/exp_avg"."""
    names = {id(p): n for n, p in model.named_parameters()}
    return {
        f"{names[id(parameter)]}/{key}": value
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def load_optimizer_tensors(
    model: nn.Module, optimizers: Iterable[torch.optim.Optimizer], tensors: dict[str, Tensor]
) -> None:
    """Restore the tensors of `optimizer_tensors`.

    Raises:
        ValueError: a tensor for a parameter that the model lacks or whose shape differs.
    """
    parameters = dict(model.named_parameters())
    owner = {
        id(p): optimizer
        for optimizer in optimizers
        for group in optimizer.param_groups
        for p in group["params"]
    }
    for name, value in tensors.items():
        parameter_name, _, key = name.rpartition("/")
        parameter = parameters.get(parameter_name)
        if parameter is None or (value.ndim and value.shape != parameter.shape):
            raise ValueError(
                f"optimizer state {name} of shape {tuple(value.shape)} does not fit this model"
            )
        # The step counter lives where the optimizer keeps it: with the parameter when fused on a
        # GPU.
        on_device = value.ndim or owner[id(parameter)].defaults.get("fused")
        state = owner[id(parameter)].state[parameter]
        state[key] = distribute_like(value, parameter).to(parameter.device) if on_device else value
