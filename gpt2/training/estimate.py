"""The cost of a training step: floating point operations and memory.

FLOPs per token, two conventions (always say which):
    exact     6 (matrix weights) + 6 L C (T + 1):  head included, positions and norms not; only the
              causal half of attention; forward and backward, nothing recomputed
    nanogpt   6 (N - T C) + 12 L C T:  all parameters but positions, the masked half counted too

Memory. Weights, their gradients and the optimizer's moments are float32. Each part of the model
keeps activations from its forward to its backward, and needs working memory while it runs. A step
passes through embedding, layers, head, and back: what it holds grows by what each part keeps, then
shrinks again while gradients take its place. The peak is the largest sum on the way:

    forward of the head            everything is kept, and logits come on top; the usual case
    backward of the last layer     where logits are few, or attention keeps its scores (naive)
    backward of the embedding      few tokens: all gradients are there, a tied table's twice
    optimizer step                 few tokens, with Muon, whose update needs working memory

With `recompute="block"` a layer keeps its inputs alone. Its backward begins with its forward, done
again, after which it holds what it would have kept.

Under autocast the operands of matrix products are 16 bits wide; the residual stream, its gradient
and the norms on it stay float32. Autocast also keeps 16-bit copies of a layer's weights from its
forward to its backward.

This is PyTorch in eager mode, without the allocator's slack, workspaces of libraries and the CUDA
context; `torch.compile` keeps less. On a CPU tests hold it to measured allocations; CUDA differs in
the few places that ask whether this is a `cpu`.

Axes: L layers, C channels, T time, V vocabulary, H heads, F feed-forward width, N = B T tokens of
a micro-batch. Sizes are in bytes, and s is the size of an element in the compute type.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch

from gpt2.common.devices import human_bytes
from gpt2.config import GPTConfig
from gpt2.loss import CACHE_ELEMENTS, CHUNK_BYTES
from gpt2.model import GPT, count_parameters
from gpt2.training.optim import iterate_dtype
from kernels._common.head import chunk_rows


def flops_per_token(config: GPTConfig, seq_len: int) -> int:
    """Return the model FLOPs of forward and backward per token, in the "exact" convention."""
    L, C = config.n_layer, config.n_embd
    weights = L * (4 * C * C + mlp_matrices(config) * C * config.mlp_width) + config.vocab_size * C
    return round(6 * weights + 12 * L * C * visible_positions(config, seq_len))


def flops_per_token_nanogpt(config: GPTConfig, seq_len: int) -> int:
    """Return them in the convention of nanoGPT's `estimate_mfu`."""
    L, C = config.n_layer, config.n_embd
    positions = config.block_size * C if config.positions == "learned" else 0
    return 6 * (count_parameters(config) - positions) + 12 * L * C * seq_len


def visible_positions(config: GPTConfig, seq_len: int) -> float:
    """Return how many positions a position of one document attends to, on average."""
    window = min(config.window or seq_len, seq_len)
    return window - window * (window - 1) / (2 * seq_len)


def mlp_matrices(config: GPTConfig) -> int:
    """Return the number of weight matrices of the MLP."""
    return 3 if config.mlp == "swiglu" else 2


@dataclass(frozen=True)
class Memory:
    """Bytes that a training step needs, by item; not all of them at the same time.

    Attributes:
        weights, gradients, optimizer: of the whole model, in float32.
        activations: tensors that the forward saves for the backward, by part of the model.
        logits: a chunk of logits, and the working memory of the loss on it.
        peak: the most that is held at a time.
        moment: when that is.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: dict[str, int]
    logits: int
    peak: int
    moment: str

    def __str__(self) -> str:
        items = vars(self) | {"activations": sum(self.activations.values())}
        sizes = ", ".join(
            f"{name} {human_bytes(items[name])}"
            for name in ("weights", "gradients", "optimizer", "activations", "logits")
        )
        return f"{sizes}; peak {human_bytes(self.peak)} ({self.moment})"


@dataclass(frozen=True)
class _Part:
    """Bytes that a micro-batch takes in one part of the model."""

    name: str
    kept: int
    """Activations saved from its forward to its backward."""
    copies: int = 0
    """16-bit copies of its weights, which autocast holds as long."""
    forward: int = 0
    """Peak extra bytes during its forward."""
    backward: int = 0
    """Peak extra bytes during its backward."""
    gradients: int = 0
    """Gradients of its weights, which stay."""
    passes_on: int = 0
    """Change in the bytes of other live gradients after its backward."""


@dataclass(frozen=True)
class _Block:
    """Parts in a row. With recomputation only `inputs` bytes are saved of them; else it is None."""

    parts: list[_Part]
    inputs: int | None = None

    @property
    def kept(self) -> int:
        return sum(part.kept for part in self.parts)

    @property
    def copies(self) -> int:
        return sum(part.copies for part in self.parts)


def training_memory(
    config: GPTConfig,
    *,
    batch_size: int,
    seq_len: int,
    dtype: torch.dtype,
    device_type: str = "cuda",
    optimizer: str = "adamw",
    grad_accum: int = 1,
) -> Memory:
    """Estimate the memory of a training step with micro-batches of `batch_size` x `seq_len` tokens.

    Args:
        config: the model, and the kernels that compute it.
        batch_size: sequences per micro-batch.
        seq_len: tokens per sequence.
        dtype: what autocast computes in; float32 is no autocast.
        device_type: "cpu" or "cuda".
        optimizer: "adamw" or "muon".
        grad_accum: micro-batches per step; from the second one on, gradients are there all along.
    """
    model = _without_memory(config)
    weights = 4 * sum(t.numel() for t in (*model.parameters(), *model.buffers()))
    gradients = 4 * sum(p.numel() for p in model.parameters())
    moments, update = _optimizer_bytes(model, optimizer, dtype)
    run = _Run(config, batch_size * seq_len, seq_len, dtype, device_type == "cpu")
    blocks = [_Block([run.embedding()])]
    for i in range(config.n_layer):
        parts = [run.norm(), run.attention(), run.norm(), run.mlp()]
        blocks.append(_Block(parts, run.layer_inputs(i) if config.recompute == "block" else None))
    blocks += [_Block([run.norm(last=True)])] if config.norm_position == "pre" else []
    blocks += [_Block([run.head()])]

    held = weights + moments + run.logits_buffer()
    sums = [(held + gradients + update, "optimizer step")]
    if grad_accum > 1:
        held += gradients
    for block in blocks:
        for part in block.parts:
            held += part.copies + (part.kept if block.inputs is None else 0)
            sums.append((held + part.forward, f"forward of the {part.name}"))
        held += block.inputs or 0
    held -= sum(block.copies for block in blocks if block.inputs is not None)
    for block in reversed(blocks):
        if block.inputs is not None:
            held += block.kept + block.copies
        for part in reversed(block.parts):
            sums.append((held + part.backward, f"backward of the {part.name}"))
            held += part.passes_on - part.kept - part.copies
            held += part.gradients if grad_accum == 1 else 0
        held -= block.inputs or 0
    peak, moment = max(sums)

    activations = {part.name: 0 for block in blocks for part in block.parts}
    activations |= {"layer inputs": 0, "16-bit weights": 0}
    for block in blocks:
        if block.inputs is not None:
            activations["layer inputs"] += block.inputs
            continue
        activations["16-bit weights"] += block.copies
        for part in block.parts:
            activations[part.name] += part.kept
    return Memory(weights, gradients, moments, activations, sum(run.logits()), peak, moment)


@dataclass(frozen=True)
class _Run:
    """The parts of a model under the settings of a run."""

    config: GPTConfig
    tokens: int
    seq_len: int
    dtype: torch.dtype
    cpu: bool

    @property
    def autocast(self) -> bool:
        return self.dtype != torch.float32

    @property
    def norm_casts(self) -> bool:
        """Tell whether norms write the 16-bit input of the next product, or autocast copies it."""
        return self.config.norm_kernel == "triton" and self.config.norm_position == "pre"

    @property
    def stream(self) -> int:
        """The residual stream, or its gradient; both are float32 in any case."""
        return 4 * self.tokens * self.config.n_embd

    def narrow(self, width: int) -> int:
        """A tensor of N x `width` elements in the compute type."""
        return self.dtype.itemsize * self.tokens * width

    def copies(self, weights: int) -> int:
        """Autocast's copies of so many weights."""
        return self.dtype.itemsize * weights if self.autocast else 0

    def dropped(self, elements: int, itemsize: int) -> int:
        """The mask that dropout saves: on a CPU in the input's type, on CUDA as booleans."""
        if not self.config.dropout:
            return 0
        return elements * (itemsize if self.cpu else 1)

    def embedding(self) -> _Part:
        config = self.config
        table = 4 * config.padded_vocab_size * config.n_embd
        positions = 4 * config.block_size * config.n_embd if config.positions == "learned" else 0
        return _Part(
            "embedding",
            kept=self.dropped(self.tokens * config.n_embd, 4),
            forward=self.stream,
            backward=self.stream + table,  # its gradient is dense
            gradients=positions + table,
            passes_on=-self.stream - (table if config.tie else 0),
        )

    def layer_inputs(self, layer: int) -> int:
        """The stream, and the branch that is still to be added to it."""
        branch = self.config.norm_position == "pre" and layer > 0
        return self.stream + (self.narrow(self.config.n_embd) if branch else 0)

    def norm(self, last: bool = False) -> _Part:
        """A norm, and the residual addition before it."""
        stream, branch = self.stream, self.narrow(self.config.n_embd)
        ours = self.config.norm_kernel == "triton"
        layernorm = self.config.norm == "layernorm"
        kept = stream + self.tokens * (8 if layernorm else 4)  # its input; mean, 1/std
        if self.cpu and not layernorm and not ours:
            kept += stream  # F.rms_norm has no kernel for CPUs, and keeps x/rms too
        return _Part(
            "norms and residuals",
            kept=kept,
            forward=branch + (branch if self.norm_casts else stream),  # its output
            backward=(branch if ours else stream) + (0 if last else stream),
        )

    def attention(self) -> _Part:
        config, C = self.config, self.config.n_embd
        # PyTorch's fused kernel for CPUs has no dropout: there SDPA does the same in plain float32.
        plain_sdpa = config.attn == "sdpa" and self.cpu and config.dropout > 0
        if plain_sdpa or config.attn == "naive":
            kept, forward, backward = self.scores(plain_sdpa)
        else:
            kept, forward, backward = self.fused_attention()
        # Its input; q, k, v; its output; and what dropout leaves out of the branch.
        kept += self.narrow(C + 3 * C + C) + self.dropped(self.tokens * C, self.dtype.itemsize)
        return _Part(
            "attention",
            kept=kept,
            copies=self.copies(4 * C * C),
            forward=forward + self.narrow(C),
            backward=backward + self.narrow(C),
            gradients=4 * 4 * C * C,
        )

    def scores(self, plain_sdpa: bool) -> tuple[int, int, int]:
        """Bytes saved, forward and backward of attention that materialises its scores."""
        elements = self.tokens * self.config.n_head * self.seq_len
        scores = 4 * elements  # in float32
        kept = scores + self.dropped(elements, 4)  # the softmax
        # The factor of v: the softmax itself, or a copy that is narrow, or has values dropped.
        copy = 0
        if self.autocast or self.config.dropout:
            copy = scores if plain_sdpa else self.dtype.itemsize * elements
        forward = scores
        if self.autocast and self.config.dropout and not plain_sdpa:
            forward += scores  # values dropped, and not yet narrow
        if plain_sdpa:
            kept += 3 * (self.stream - self.narrow(self.config.n_embd))  # q, k, v in float32
        return kept + copy, forward, 2 * scores - copy  # two gradients of scores, when v is done

    def fused_attention(self) -> tuple[int, int, int]:
        """Bytes saved, forward and backward of attention that computes its scores again."""
        config = self.config
        kept = 4 * self.tokens * config.n_head  # log-sum-exp
        if config.attn == "sdpa" and (config.window or self.seq_len) < self.seq_len:
            kept += self.dtype.itemsize * self.seq_len**2  # the mask
        gradients = self.narrow(3 * config.n_embd)
        if config.attn != "sdpa" or not self.cpu:
            gradients += self.stream  # dq is summed in float32
        return kept, 0, gradients

    def mlp(self) -> _Part:
        config, C, F = self.config, self.config.n_embd, self.config.mlp_width
        weights = mlp_matrices(config) * C * F
        if config.mlp == "swiglu":
            # Gate, up, silu(gate), their product; our kernel needs no silu(gate) in memory.
            kept = self.narrow(3 * F if config.mlp_kernel == "triton" else 4 * F)
            inputs = 2 if self.autocast and not self.norm_casts else 1  # a copy for each product
            backward = self.narrow(2 * F)
        else:
            kept, inputs, backward = self.narrow(2 * F), 1, self.narrow(F)
        kept += self.narrow(inputs * C) + self.dropped(self.tokens * C, self.dtype.itemsize)
        return _Part(
            "MLP",
            kept=kept,
            copies=self.copies(weights),
            forward=self.narrow(C),
            backward=backward + self.narrow(C),
            gradients=4 * weights,
        )

    def head(self) -> _Part:
        C, table = self.config.n_embd, self.config.padded_vocab_size * self.config.n_embd
        x = self.narrow(C)
        if not self.norm_casts:
            x = self.stream + (x if self.autocast else 0)
        return _Part(
            "head",
            kept=self.narrow(C) + 4 * table,  # both gradients, formed with the logits
            forward=x + self.copies(table) + sum(self.logits()) - self.logits_buffer(),
            backward=self.stream,
            gradients=0 if self.config.tie else 4 * table,
            # A tied table's gradient waits for its other part, from the embedding.
            passes_on=self.stream + (4 * table if self.config.tie else 0),
        )

    def logits(self) -> tuple[int, int]:
        """A chunk of logits, and the extra bytes while it becomes a gradient."""
        C, V, s = self.config.n_embd, self.config.padded_vocab_size, self.dtype.itemsize
        rows = rows_of_logits(self.config, self.tokens, self.dtype)
        if self.config.loss_kernel == "triton":
            return rows * V * s, 0
        softmax = 4 * V * (min(rows, max(1, CACHE_ELEMENTS // V)) if self.cpu else rows)
        if not self.autocast:
            return rows * V * s, softmax
        # A product that could not be added up where it belongs, and on a CPU dx, to be scaled.
        product, scaled = (s * V * C, 8 * rows * C) if self.cpu else (4 * V * C, 0)
        return rows * V * s, max(softmax, product, scaled)

    def logits_buffer(self) -> int:
        """The buffer of logits that gpt2.loss keeps from step to step."""
        return self.logits()[0] if self.cpu and self.config.loss_kernel == "torch" else 0


def rows_of_logits(config: GPTConfig, tokens: int, dtype: torch.dtype) -> int:
    """Return how many rows of logits exist at a time: the loss takes them in chunks."""
    row = config.padded_vocab_size * dtype.itemsize
    budget = CHUNK_BYTES
    if config.loss_kernel == "triton":
        from kernels.linear_cross_entropy import CHUNK_BYTES as budget
    return chunk_rows(tokens, row, budget)


@lru_cache(maxsize=1)
def _without_memory(config: GPTConfig) -> GPT:
    with torch.device("meta"):
        return GPT(config)


def _optimizer_bytes(model: GPT, optimizer: str, dtype: torch.dtype) -> tuple[int, int]:
    """Return the bytes of the optimizer's state, and of its working memory."""
    kept = working = 0
    for name, p in model.named_parameters():
        if optimizer == "muon" and name.startswith("h.") and p.ndim == 2:
            kept += 4 * p.numel()
            # The matrix to make orthogonal, two iterates and two Gram matrices.
            size = iterate_dtype(dtype).itemsize
            working = max(working, size * (3 * p.numel() + 2 * min(p.shape) ** 2))
        else:
            kept += 8 * p.numel() + 4  # two moments and a counter
    return kept, working
