"""The least time of a training step on a GPU, part by part: a roofline (Williams et al. 2009).

A part takes as long as its arithmetic at the data sheet's rate of matrix products, or as its memory
traffic at the data sheet's bandwidth, whichever is longer; the parts follow one another. Nothing is
measured: no program meets both rates, and launches, reductions and exponentials cost time too.

Bytes are those of eager PyTorch: every operator reads its inputs and writes its outputs once, and
no cache helps from one to the next. `torch.compile` fuses operators and moves less. Our kernels
move the bytes that their docstrings give. FLOPs are those executed: attention that keeps no scores
computes them twice, and attention that masks also computes the hidden ones.

In the formulas, `a_token` is bytes for each token, `a_weight` for each weight, and so on.
"""

import dataclasses
import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any, Literal

from gpt2.common.devices import DEVICES, DTYPES, Device
from gpt2.config import GPTConfig
from gpt2.model import count_parameters
from gpt2.training.estimate import (
    Memory,
    flops_per_token,
    flops_per_token_nanogpt,
    mlp_matrices,
    rows_of_logits,
    training_memory,
    visible_positions,
)
from gpt2.training.optim import iterate_dtype

ADAMW_BYTES = 28  # a weight: reads weight, gradient and two moments, writes all but the gradient
CLIP_BYTES = 12  # a weight: the norm reads the gradient, clipping reads and writes it
MUON_STEPS = 5  # Newton-Schulz iterations


@dataclass(frozen=True)
class Cost:
    """FLOPs and bytes of a part of one optimizer step."""

    part: str
    flops: float
    bytes: float


@dataclass(frozen=True)
class Step:
    """A training step: `grad_accum` micro-batches of `batch_size` x `seq_len` tokens."""

    config: GPTConfig
    batch_size: int
    seq_len: int
    dtype: Literal["bf16", "fp16", "fp32"]
    grad_accum: int = 1
    optimizer: Literal["adamw", "muon"] = "adamw"

    @property
    def tokens(self) -> int:
        return self.batch_size * self.seq_len * self.grad_accum

    @property
    def itemsize(self) -> int:
        return DTYPES[self.dtype].itemsize

    @property
    def cast(self) -> int:
        """Bytes to convert one element between float32 and the compute type."""
        return 0 if self.dtype == "fp32" else 4 + self.itemsize

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Shapes of a layer's matrices, (inputs, outputs), in the order of the forward."""
        C, F = self.config.n_embd, self.config.mlp_width
        return [(C, 3 * C), (C, C), *(mlp_matrices(self.config) - 1) * [(C, F)], (F, C)]

    @property
    def scores(self) -> float:
        """The number of scores computed for a position, hidden ones included."""
        T, attn = self.seq_len, self.config.attn
        masked = attn == "sdpa" and (self.config.window or T) < T
        return T if attn == "naive" or masked else visible_positions(self.config, T)

    def costs(self) -> list[Cost]:
        return [
            self.embedding(), self.matrix_products(), self.attention(), self.norms(),
            self.activation(), self.head(),
            *([self.recomputation()] if self.config.recompute == "block" else []), self.update(),
        ]  # fmt: skip

    def memory(self) -> Memory:
        return training_memory(
            self.config, batch_size=self.batch_size, seq_len=self.seq_len,
            dtype=DTYPES[self.dtype], optimizer=self.optimizer, grad_accum=self.grad_accum,
        )  # fmt: skip

    def embedding(self) -> Cost:
        C, table = self.config.n_embd, self.config.padded_vocab_size * self.config.n_embd
        a_token = C * (8 + 8 + 8)  # look up, add positions; add the gradient to its row
        if self.config.dropout:
            a_token += C * (4 * 4 + 2)
        # The gradient is dense: it is zeroed, and with a tied head added to the head's.
        a_batch = table * (4 + (12 if self.config.tie else 0))
        return Cost("embedding", 0, self.tokens * a_token + self.grad_accum * a_batch)

    def matrix_products(self) -> Cost:
        """Projections and MLP, forward and backward, with the conversions of autocast."""
        config, F = self.config, self.config.mlp_width
        weights = config.n_layer * sum(i * o for i, o in self.shapes)
        ends = sum(i + o for i, o in self.shapes)
        # y = x W and its gradients, dx = dy W and dW = dy x: two reads and one write of each.
        a_token = 3 * self.itemsize * ends
        if config.bias:  # whose gradient reads dy again
            biases = sum(o for _, o in self.shapes)
            fused = F if config.mlp == "gelu" and config.mlp_kernel == "triton" else 0
            a_token += self.itemsize * (biases - fused)
        a_weight = self.grad_accum * (3 * self.itemsize + 2 * self.cast)
        a_weight += 12 * (self.grad_accum - 1)  # the sum over micro-batches
        return Cost(
            "matrix products",
            6 * weights * self.tokens,
            config.n_layer * a_token * self.tokens + a_weight * weights,
        )

    def attention(self) -> Cost:
        config, s, T = self.config, self.itemsize, self.seq_len
        L, C, H = config.n_layer, config.n_embd, config.n_head
        if config.attn == "naive":
            # Six products with scores on one side; q, k, v, o, do copied; dq, dk, dv packed.
            products, a_channel = 12, (12 + 10 + 6) * s
            # Masked, softmax, narrow; then the same back. Scores are float32 between products.
            cast = self.cast
            a_score = (s + s + 4) + 8 + cast + s + (2 * s + cast + 12 + 8 + cast + 2 * s)
            if config.dropout:
                a_score += 2 * (8 + 1)
        else:
            products = 14
            # Forward: q, k, v to o. Backward: these and do, to dq (summed in float32), dk, dv.
            a_channel, a_score = 4 * s + 8 * s + 8 + 4, 0
            if config.attn == "sdpa":
                a_channel += 6 * s  # dq, dk and dv packed
        flops = products * C * self.scores
        a_token = a_channel * C + a_score * H * T
        return Cost("attention", L * flops * self.tokens, L * a_token * self.tokens)

    def norms(self) -> Cost:
        """Norms, residual additions, and dropout of the branches."""
        config, s, cast = self.config, self.itemsize, self.cast
        additions = 2 * config.n_layer
        norms = additions + (1 if config.norm_position == "pre" else 0)
        shared = config.n_layer if config.mlp == "swiglu" else 0  # inputs of two products
        products = additions + 1 + shared
        a_product, a_shared = 2 * cast, 12  # to the compute type and back; two gradients' sum
        if config.norm_kernel == "torch":
            a_norm = 8 + 12  # x to y; dy and x to dx
            an_addition = (4 + s + 4) + 12 + cast  # the sum; its two gradients'; the branch's
        elif config.norm_position == "pre":
            a_norm = (4 + s) + (s + 4 + 4)
            an_addition = (s + 4) + 4 + (s if cast else 0)  # branch and sum; likewise
            a_product, a_shared = 0, 3 * s
        else:
            a_norm = 8 + 12
            an_addition = (s + 4) + 12 + (s if cast else 0)
        if config.dropout:
            an_addition += 4 * s + 2
        a_channel = a_norm * norms + an_addition * additions
        a_channel += a_product * products + a_shared * shared
        return Cost("norms and residuals", 0, a_channel * config.n_embd * self.tokens)

    def activation(self) -> Cost:
        config, s = self.config, self.itemsize
        if config.mlp == "gelu":
            a_feature = 5 * s  # x to y; dy and x to dx
        elif config.mlp_kernel == "triton":
            a_feature = 3 * s + 5 * s
        else:
            a_feature = (2 + 3) * s + (3 + 3 + 3) * s  # silu and product; then back
        bytes_ = config.n_layer * config.mlp_width * a_feature * self.tokens
        return Cost("MLP activation", 0, bytes_)

    def head(self) -> Cost:
        """Three products with the table, and the loss on the logits between them."""
        config, s, cast = self.config, self.itemsize, self.cast
        C, V = config.n_embd, config.padded_vocab_size
        micro_batch = self.batch_size * self.seq_len
        chunks = math.ceil(micro_batch / rows_of_logits(config, micro_batch, DTYPES[self.dtype]))
        if config.loss_kernel == "triton":
            a_logit = (1 + 2 + 2) * s  # made, softmax in place, two products
            a_chunk = 2 * s + 8  # reads the table twice, adds to its gradient
        else:
            a_logit = s + (s + 4) + 4 + 8 + 4 + (4 + s) + 2 * s  # the softmax in float32 scratch
            a_chunk = 2 * s + (16 if cast else 8)
        a_table = 8 + cast + a_chunk * chunks  # scaled by the loss's gradient
        return Cost(
            "head and loss",
            6 * V * C * self.tokens,
            (a_logit * V + 9 * s * C) * self.tokens + a_table * V * C * self.grad_accum,
        )

    def recomputation(self) -> Cost:
        """The second forward of the layers, up to the last operator that the backward needs."""
        config, s, cast, T = self.config, self.itemsize, self.cast, self.seq_len
        C, F = config.n_embd, config.mlp_width
        gated = config.mlp == "swiglu"
        # Only a norm after it, or its dropout, ask for the output of the last matrix.
        asked = config.norm_position == "post" or config.dropout > 0
        shapes = self.shapes if asked else self.shapes[:-1]
        weights = sum(i * o for i, o in shapes)
        a_token = s * sum(i + o for i, o in shapes)
        if config.attn == "naive":
            a_score = (s + s + 4) + 8 + cast + s + (8 + 1 if config.dropout else 0)
            a_token += (4 + 8) * s * C + a_score * config.n_head * T
        else:
            a_token += 4 * s * C
        if config.norm_kernel == "torch" or config.norm_position == "post":
            a_token += C * (2 * (8 + 8 + s) + (2 + gated) * cast)
        else:
            a_token += C * 2 * (s + 4 + 4 + s)
        if config.dropout:
            a_token += C * 2 * (2 * s + 1)
        fused = config.mlp_kernel == "triton"
        a_token += s * F * ((3 if fused else 5) if gated else 2)
        a_batch = weights * (s + cast) * self.grad_accum
        return Cost(
            "layers again",
            config.n_layer * (2 * weights + 4 * C * self.scores) * self.tokens,
            config.n_layer * (a_token * self.tokens + a_batch),
        )

    def update(self) -> Cost:
        config = self.config
        parameters = count_parameters(config)
        if self.optimizer == "adamw":
            return Cost("optimizer", 0, (ADAMW_BYTES + CLIP_BYTES) * parameters)
        hidden = config.n_layer * sum(i * o for i, o in self.shapes)
        # An iteration is X = a X + (b XX' + c (XX')^2) X.
        flops = sum(MUON_STEPS * (4 * min(i) ** 2 * max(i) + 2 * min(i) ** 3) for i in self.shapes)
        s = iterate_dtype(DTYPES[self.dtype]).itemsize
        # Momentum, look-ahead, its iterate, the norm; iterations; decay and step.
        a_hidden = 12 + 12 + (4 + s) + 3 * s + MUON_STEPS * 4 * s + 8 + (8 + s)
        bytes_ = a_hidden * hidden + ADAMW_BYTES * (parameters - hidden) + CLIP_BYTES * parameters
        return Cost("optimizer", config.n_layer * flops, bytes_)


@dataclass(frozen=True)
class Estimate:
    """A step on a device: seconds by part, and figures derived from them."""

    step: Step
    device_name: str

    @property
    def device(self) -> Device:
        return DEVICES[self.device_name]

    @property
    def flops_per_second(self) -> float:
        fp32 = self.step.dtype == "fp32"
        return 1e12 * (self.device.tflops_32 if fp32 else self.device.tflops_16)

    def seconds(self, cost: Cost) -> float:
        return max(cost.flops / self.flops_per_second, cost.bytes / (1e9 * self.device.bandwidth))

    def bound(self, cost: Cost) -> str:
        computing = cost.flops / self.flops_per_second
        return "arithmetic" if computing == self.seconds(cost) else "memory"

    def largest_batch(self) -> int:
        """Sequences per micro-batch that fit 95% of the memory; 0 if not even one does."""

        def too_large(batch_size: int) -> bool:
            step = dataclasses.replace(self.step, batch_size=batch_size)
            return step.memory().peak > 0.95 * 2**30 * self.device.memory

        return bisect_left(range(1, 2**40), True, key=too_large)

    def result(self) -> dict[str, Any]:
        """All figures, in FLOPs, bytes and seconds."""
        step, config = self.step, self.step.config
        costs = step.costs()
        seconds = sum(self.seconds(cost) for cost in costs)
        exact = flops_per_token(config, step.seq_len)
        nanogpt = flops_per_token_nanogpt(config, step.seq_len)
        return {
            "step": dataclasses.asdict(step),
            "device": {"name": self.device_name, **self.device._asdict()},
            "parameters": count_parameters(config),
            "flops_per_token": {"exact": exact, "nanogpt": nanogpt},
            "parts": [
                dataclasses.asdict(cost)
                | {"bound": self.bound(cost), "seconds": self.seconds(cost)}
                for cost in costs
            ],
            "seconds": seconds,
            "tokens_per_second": step.tokens / seconds,
            "mfu": {
                "exact": exact * step.tokens / seconds / self.flops_per_second,
                "nanogpt": nanogpt * step.tokens / seconds / self.flops_per_second,
            },
            "tokens_per_second_by_matmul_rate": self.flops_per_second / exact,
            "memory": dataclasses.asdict(step.memory()),
            "largest_batch": self.largest_batch(),
        }
