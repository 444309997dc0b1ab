"""Optimizers, their parameter groups, and the learning rate schedule."""

import math
from collections.abc import Iterable

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
) -> list[torch.optim.Optimizer]:
    """Build AdamW over all parameters, or Muon over the hidden matrices and AdamW over the rest.

    Matrices decay; norms and biases do not. Sources: Loshchilov and Hutter 2019, arXiv:1711.05101;
    Muon: Jordan et al. 2024.
    """
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    optimizers: list[torch.optim.Optimizer] = []
    if optimizer == "muon":
        hidden = [p for n, p in named if n.startswith("h.") and p.ndim == 2]
        # The adjustment gives its updates the size of AdamW's, so that one --lr serves both.
        optimizers.append(
            torch.optim.Muon(
                hidden, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        )
        taken = {id(p) for p in hidden}
        named = [(n, p) for n, p in named if id(p) not in taken]
    groups = [
        {"params": [p for _, p in named if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = named[0][1].device.type in ("cpu", "cuda")
    adamw = torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, fused=fused)
    return [*optimizers, adamw]


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
