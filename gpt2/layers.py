"""The layers of a Transformer block besides attention, and sinusoidal positions.

Norms and MLPs have two `kernel`s: "torch", PyTorch's own operators, and "triton", ours, which fuse
the residual addition into the norm and the bias into GELU. Both compute the same function.

Axes: B batch, T time, C channels (n_embd), F feed-forward width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2.config import GPTConfig, Kernel

BLOCKS = 16  # that a matrix is cut into for the product with one row


def _next_dtype(x: Tensor) -> torch.dtype:
    """The dtype that the next linear layer computes in: autocast's where it is on."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + bias, as `F.linear`: x (..., K), weight (N, K) and bias (N,) to (..., N).

    A single row costs the time in which W is read. On a CPU PyTorch leaves it to one thread of MKL,
    which reads at half the memory's speed. In a batch of products MKL gives each thread some of
    them, and reads at full speed: so W is cut into blocks of its rows, where no gradient is needed.
    In 16 bits it has no such product; a compiled model sums in one loop over W as it is stored.
    """
    N, K = weight.shape
    one_row = x.device.type == "cpu" and x.numel() == K and x.dtype == weight.dtype
    gradient = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if one_row and torch.compiler.is_compiling() and not gradient:
        # As a tensor in memory: fused, what computes x would be done again for every row of W.
        x = x.as_strided(x.shape, x.stride())
        precise = torch.promote_types(x.dtype, torch.float32)
        row = x.view(K).to(precise)
        # From four places at a time memory gives more than from one.
        y = torch.cat([(part.to(precise) * row).sum(-1) for part in weight.chunk(4)])
        return (y if bias is None else y + bias).to(x.dtype).view(*x.shape[:-1], N)
    if not one_row or x.dtype != torch.float32 or N % BLOCKS or gradient:
        return F.linear(x, weight, bias)
    blocks = weight.unflatten(0, (BLOCKS, -1))
    # A transposed row: for a column of other strides MKL takes another way, which is slow.
    column = x.reshape(1, 1, K).expand(BLOCKS, 1, K).mT
    biases = None if bias is None else bias.view(BLOCKS, -1, 1)
    y = blocks @ column if biases is None else torch.baddbmm(biases, blocks, column)
    return y.view(*x.shape[:-1], N)


class Linear(nn.Linear):
    """`nn.Linear`, computed by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Norm(nn.Module):
    """A norm over the last axis, alone or in one step with the residual addition before it."""

    kernel: Kernel

    def add(
        self, x: Tensor, branch: Tensor, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """(norm(x + branch), x + branch), of x and branch (..., C).

        The norm comes in `dtype`; by default the Triton kernel chooses the next linear layer's.
        """
        if self.kernel == "triton":
            return self._add_fused(x, branch, dtype or _next_dtype(x))
        x = x + branch
        y = self(x)
        return y if dtype is None else y.to(dtype), x

    def _add_fused(self, x: Tensor, branch: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class LayerNorm(Norm):
    """y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias, over the last axis.

    Source: Ba, Kiros, Hinton 2016, arXiv:1607.06450.
    """

    def __init__(
        self, width: int, bias: bool = True, eps: float = 1e-5, kernel: Kernel = "torch"
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.eps = eps
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:  # (..., C) -> (..., C)
        if self.kernel == "triton":
            from kernels.layer_norm import layer_norm

            return layer_norm(x, self.weight, self.bias, self.eps, dtype=_next_dtype(x))
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)

    def _add_fused(self, x: Tensor, branch: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        from kernels.layer_norm import add_layer_norm

        return add_layer_norm(branch, x, self.weight, self.bias, self.eps, dtype=dtype)


class QuickNorm(Norm):
    """y = x / sqrt(mean(x^2) + eps) * weight, over the last axis: no centring, no shift.

    This is RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467). "Divide by sqrt(variance + eps)
    without centring" could also be read as the variance about the mean. We take the mean square:
    that is what is left of the variance when the mean is not subtracted, it makes y invariant to
    the scale of x, and it is the form that language models since LLaMA are trained with. It costs
    one reduction over x instead of two, and half of LayerNorm's parameters.
    """

    def __init__(self, width: int, eps: float = 1e-6, kernel: Kernel = "torch") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:  # (..., C) -> (..., C)
        if self.kernel == "triton":
            from kernels.rms_norm import rms_norm

            return rms_norm(x, self.weight, self.eps, dtype=_next_dtype(x))
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)

    def _add_fused(self, x: Tensor, branch: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        from kernels.rms_norm import add_rms_norm

        return add_rms_norm(branch, x, self.weight, self.eps, dtype=dtype)


class GELU(nn.Module):
    """Two linear layers with GPT-2's GELU between them: y = W_proj gelu(W_fc x).

    gelu(x) = 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))): the tanh form, as in GPT-2's weights.
    Source: Hendrycks and Gimpel 2016, arXiv:1606.08415; Radford et al. 2019.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.c_fc = Linear(config.n_embd, config.mlp_width, bias=config.bias)
        self.c_proj = Linear(config.mlp_width, config.n_embd, bias=config.bias)
        self.kernel = config.mlp_kernel

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C) -> (B, T, C)
        if self.kernel == "triton":
            from kernels.gelu import gelu_tanh

            return self.c_proj(gelu_tanh(F.linear(x, self.c_fc.weight), self.c_fc.bias))
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class SwiGLU(nn.Module):
    """y = W_down (silu(W_gate x) * W_up x), with silu(x) = x sigmoid(x).

    Three matrices instead of two: at equal width that is 1.5 times the parameters of the GELU
    layer, so the default width is 2/3 of GPT-2's 4C (`GPTConfig.mlp_width`), which makes them
    equal. Source: Shazeer 2020, arXiv:2002.05202.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.w_gate = Linear(config.n_embd, config.mlp_width, bias=config.bias)
        self.w_up = Linear(config.n_embd, config.mlp_width, bias=config.bias)
        self.w_down = Linear(config.mlp_width, config.n_embd, bias=config.bias)
        self.kernel = config.mlp_kernel

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C) -> (B, T, C)
        if self.kernel == "triton":
            from kernels.swiglu import swiglu

            return self.w_down(swiglu(self.w_gate(x), self.w_up(x)))
        return self.w_down(F.silu(self.w_gate(x)) * self.w_up(x))


def create_sinusoidal_positions(max_len: int, d_model: int) -> Tensor:
    """Sinusoidal position encodings, shape (max_len, d_model), float32, no parameters.

    P[t, 2i] = sin(t / 10000^(2i/d)), P[t, 2i+1] = cos(t / 10000^(2i/d)). Defined for every t, so
    that a model can be run past the length it was trained on; learned positions end at
    `block_size`. Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.5.

    Raises:
        ValueError: odd d_model, as sines and cosines come in pairs.
    """
    if d_model % 2:
        raise ValueError(f"sinusoidal positions need an even width, got d_model={d_model}")
    # In float64: a rounding of a float32 angle grows with t. Apple's GPU has none, every CPU has.
    t = torch.arange(max_len, dtype=torch.float64, device="cpu")[:, None]
    exponent = torch.arange(0, d_model, 2, dtype=torch.float64, device="cpu") / d_model
    angle = t / 10000**exponent
    table = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)
    return table.float().to(torch.get_default_device())


def build_norm(config: GPTConfig) -> Norm:
    if config.norm == "quicknorm":
        return QuickNorm(config.n_embd, kernel=config.norm_kernel)
    return LayerNorm(config.n_embd, bias=config.bias, kernel=config.norm_kernel)


def build_mlp(config: GPTConfig) -> GELU | SwiGLU:
    return SwiGLU(config) if config.mlp == "swiglu" else GELU(config)
