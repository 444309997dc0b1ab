"""Training steps to measure: ours with every choice of kernels, and those of peers.

The step is `gpt2.training.trainer.train_step` with the optimizer of `gpt2.training.optim` and the
autocast of `gpt2.training.machine`, as train.py runs it, on one micro-batch of random tokens.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.harness.peer_models import build_peer
from bench.harness.peer_models import unavailable as peer_unavailable
from gpt2.backends import unusable
from gpt2.config import GPTConfig, Kernel
from gpt2.model import GPT
from gpt2.training.estimate import flops_per_token
from gpt2.training.machine import Machine
from gpt2.training.optim import build_optimizers
from gpt2.training.trainer import StepResult, train_step


@dataclass(frozen=True)
class Problem:
    """A model, a micro-batch of B sequences of T tokens, a device and a compute dtype."""

    name: str
    shape: GPTConfig
    B: int
    T: int
    device: torch.device
    dtype: torch.dtype

    @property
    def config(self) -> GPTConfig:
        return replace(self.shape, block_size=self.T)

    @property
    def tokens(self) -> int:
        return self.B * self.T

    @property
    def tflops(self) -> float:
        """Model FLOPs of a step by the "exact" convention, in 1e12."""
        return self.tokens * flops_per_token(self.config, self.T) / 1e12

    def batch(self) -> tuple[Tensor, Tensor]:
        """Random tokens and targets, (B, T) int64, the same at each call."""
        generator = torch.Generator().manual_seed(0)
        shape = (2, self.B, self.T)
        tokens = torch.randint(self.config.vocab_size, shape, generator=generator)
        x, y = tokens.to(self.device)
        return x, y


@dataclass(frozen=True)
class Recipe:
    """The model and kernels that compute a step.

    Attributes:
        name: name of the variant.
        attn, norm_kernel, mlp_kernel: as in `GPTConfig`.
        head: "torch" and "triton" are the `loss_kernel`s; "whole" computes all logits and
            then the loss; "padded" does so over the padded vocabulary.
        compile: under torch.compile.
        fp32: without autocast.
        peer: the peer whose model is trained; None for ours.
        skip: reason not to run it here.
    """

    name: str
    attn: str = "sdpa"
    norm_kernel: Kernel = "torch"
    mlp_kernel: Kernel = "torch"
    head: Literal["whole", "padded", "torch", "triton"] = "torch"
    compile: bool = False
    fp32: bool = False
    peer: str | None = None
    skip: str | None = None

    @property
    def choices(self) -> dict[str, str]:
        """The keyword arguments for `GPT.use`."""
        return {
            "attn": self.attn, "norm_kernel": self.norm_kernel, "mlp_kernel": self.mlp_kernel,
            "loss_kernel": "triton" if self.head == "triton" else "torch",
        }  # fmt: skip

    def autocast(self, problem: Problem) -> AbstractContextManager[object]:
        dtype = torch.float32 if self.fp32 else problem.dtype
        return Machine(problem.device, dtype, self.compile, ()).autocast()

    def unavailable(self, problem: Problem) -> str | None:
        """The reason that it cannot run; None if it can."""
        if self.skip or self.peer:
            return self.skip or peer_unavailable(cast(str, self.peer))
        return unusable(self.attn, problem.config, device=problem.device, dtype=problem.dtype)


class WholeLogits(nn.Module):
    """A GPT that computes all logits before the loss, as in a first implementation.

    With `padded` they are those of the padded vocabulary, whose rows beyond the real one are masked
    by a bias, so that the product is aligned.
    """

    bias: Tensor | None

    def __init__(self, gpt: GPT, *, padded: bool) -> None:
        super().__init__()
        self.gpt = gpt
        bias = torch.zeros(len(gpt.head_weight), device=gpt.head_weight.device)
        bias[gpt.config.vocab_size :] = -torch.inf
        self.register_buffer("bias", bias if padded else None, persistent=False)

    def forward(self, idx: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        x = self.gpt.hidden(idx)
        padded = self.bias is not None
        logits = F.linear(x, self.gpt.head_weight, self.bias) if padded else self.gpt.logits(x)
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class Training:
    """A model and its optimizers, whose states are made by the first step."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.optimizers = build_optimizers(model, lr=1e-4)

    @property
    def bytes(self) -> int:
        """Bytes of weights and optimizer states."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        for optimizer in self.optimizers:
            for state in optimizer.state.values():
                tensors += [value for value in state.values() if isinstance(value, Tensor)]
        return sum(t.nbytes for t in tensors)


class Step:
    """A recipe's training step on a problem; steps may share the weights of `training`."""

    def __init__(self, problem: Problem, recipe: Recipe, training: Training | None = None) -> None:
        self.problem, self.recipe = problem, recipe
        self.training = training or Training(build_model(problem, recipe.peer))
        self.batch = problem.batch()
        module = self.training.model
        self.choose()
        if recipe.head in ("whole", "padded"):
            module = WholeLogits(cast(GPT, module), padded=recipe.head == "padded")
        self.module = cast(nn.Module, torch.compile(module)) if recipe.compile else module

    def choose(self) -> tuple[()]:
        """Set the shared model to the kernels of this recipe."""
        if self.recipe.peer is None:
            cast(GPT, self.training.model).use(**self.recipe.choices)
        return ()

    def gradients(self) -> tuple[float, list[Tensor]]:
        """The loss, and the gradient of each parameter."""
        self.choose()
        self.module.zero_grad(set_to_none=True)  # left by a step that ran out of memory
        with self.recipe.autocast(self.problem):
            _, loss = self.module(*self.batch)
        loss.backward()
        found = [cast(Tensor, p.grad) for p in self.module.parameters()]
        self.module.zero_grad(set_to_none=True)
        return loss.item(), found

    def run(self) -> StepResult:
        """One training step."""
        autocast = self.recipe.autocast(self.problem)
        return train_step(self.module, self.training.optimizers, [self.batch], autocast=autocast)

    def peak_memory(self) -> int:
        """Peak bytes of training, weights and optimizer included (CUDA only)."""
        self.choose()
        self.run()  # makes the optimizer's states
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.run()
        torch.cuda.synchronize()
        return self.training.bytes + torch.cuda.max_memory_allocated() - before


def build_model(problem: Problem, peer: str | None = None) -> nn.Module:
    """An untrained model, the same at each call, on the device of the problem."""
    torch.manual_seed(0)
    with torch.device(problem.device):
        return GPT(problem.config) if peer is None else build_peer(peer, problem.config)
