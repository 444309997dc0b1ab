"""What a training step costs: floating point operations, and bytes of memory by item.

FLOPs per token, two conventions (always say which):
    exact     6 (matrix weights) + 6 L C (T + 1):  head included, positions and norms not; only the
              causal half of attention; forward and backward, nothing recomputed
    nanogpt   6 (N - T C) + 12 L C T:  all parameters but positions, the masked half counted too

Axes: L layers, C channels, T time, V vocabulary, H heads, F feed-forward width.
"""

from dataclasses import dataclass

import torch

from gpt2.config import GPTConfig
from gpt2.loss import CHUNK_BYTES
from gpt2.model import count_parameters

# Dense 16-bit matrix rates from data sheets, TFLOP/s, matched against the device name in this
# order.
_PEAK_TFLOPS = {
    "H200": 989,
    "H100 PCIe": 756,
    "H100": 989,
    "B200": 2250,
    "A100": 312,
    "A10G": 70,
    "L40S": 362,
    "L4": 121,
    "T4": 65,
    "V100": 125,
    "RTX 4090": 165,
    "RTX 3090": 71,
}


def flops_per_token(config: GPTConfig, seq_len: int) -> int:
    """Model FLOPs of forward and backward per token, "exact" convention."""
    L, C = config.n_layer, config.n_embd
    mlp_matrices = 3 if config.mlp == "swiglu" else 2
    weights = L * (4 * C * C + mlp_matrices * C * config.mlp_width) + config.vocab_size * C
    window = min(config.window or seq_len, seq_len)
    visible = window - window * (window - 1) / (2 * seq_len)  # positions that one sees, on average
    return round(6 * weights + 12 * L * C * visible)


def flops_per_token_nanogpt(config: GPTConfig, seq_len: int) -> int:
    """The same in the convention of nanoGPT's `estimate_mfu`."""
    L, C = config.n_layer, config.n_embd
    return 6 * (count_parameters(config) - config.block_size * C) + 12 * L * C * seq_len


def peak_flops(device: torch.device) -> float | None:
    """Data-sheet rate of 16-bit matrix products in FLOP/s; None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((t * 1e12 for key, t in _PEAK_TFLOPS.items() if key in name), None)


@dataclass(frozen=True)
class Memory:
    """Bytes that a training step needs, by item."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits

    def __str__(self) -> str:
        items = vars(self) | {"total": self.total}
        return ", ".join(f"{name} {human_bytes(size)}" for name, size in items.items())


def training_memory(
    config: GPTConfig, *, batch_size: int, seq_len: int, dtype: torch.dtype
) -> Memory:
    """Estimate the memory of one micro-batch of `batch_size` x `seq_len` tokens.

    Weights, gradients and AdamW's two moments are fp32. Activations are what autograd keeps for the
    backward pass in eager mode; logits are one chunk of the loss, its fp32 softmax, and the head's
    gradient that is formed with them. Allocator slack and kernels' scratch are not counted.
    """
    parameters = count_parameters(config)
    per_token = config.n_layer * _layer_bytes(config, seq_len, dtype) + 8 * config.n_embd
    tokens = batch_size * seq_len
    compute = dtype.itemsize
    V = config.padded_vocab_size
    rows = min(tokens, max(1, CHUNK_BYTES // (V * compute)))
    head_gradient = 4 * V * config.n_embd
    return Memory(
        weights=4 * parameters,
        gradients=4 * parameters,
        optimizer=8 * parameters,
        activations=tokens * per_token,
        logits=rows * V * compute + head_gradient,
    )


def _layer_bytes(config: GPTConfig, seq_len: int, dtype: torch.dtype) -> int:
    """Bytes kept per token and layer for the backward pass."""
    C, F, s = config.n_embd, config.mlp_width, dtype.itemsize
    norms = 2 * 4 * C  # the fp32 residual stream that each norm reads
    if dtype != torch.float32:
        norms += 2 * s * C  # and its output in the compute dtype
    else:
        norms += 2 * 4 * C
    attention = s * (3 * C + C)  # q, k, v and the output
    if config.attn == "naive":
        attention += config.n_head * seq_len * (4 + s + 1)  # softmax fp32, its copy, the mask
    mlp = s * F * (4 if config.mlp == "swiglu" else 2)
    dropout = 2 * C if config.dropout else 0
    return norms + attention + mlp + dropout


def device_memory(device: torch.device) -> int | None:
    """Bytes of memory that the device has; None where it cannot be asked."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        import os

        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def human_bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"
