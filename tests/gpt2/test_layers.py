"""The layers follow their equations."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gpt2.config import GPTConfig
from gpt2.layers import (
    BLOCKS,
    GELU,
    LayerNorm,
    QuickNorm,
    SwiGLU,
    create_sinusoidal_positions,
    linear,
)
from kernels.testing import judge


def test_quicknorm_divides_by_the_root_mean_square():
    norm, x = QuickNorm(8), torch.randn(3, 8)
    with torch.no_grad():
        norm.weight.copy_(torch.arange(8.0))
    expected = x / (x.pow(2).mean(dim=-1, keepdim=True) + 1e-6).sqrt() * torch.arange(8.0)
    torch.testing.assert_close(norm(x), expected)


def test_quicknorm_keeps_the_mean_that_layernorm_removes():
    x = torch.randn(4, 64) + 3
    assert LayerNorm(64)(x).mean(dim=-1).abs().max() < 1e-5
    assert (QuickNorm(64)(x).mean(dim=-1) > 0.5).all()
    assert sum(p.numel() for p in QuickNorm(64).parameters()) == 64
    assert sum(p.numel() for p in LayerNorm(64).parameters()) == 128


def test_layernorm_equals_pytorchs():
    x = torch.randn(5, 32)
    torch.testing.assert_close(LayerNorm(32)(x), nn.LayerNorm(32)(x))
    torch.testing.assert_close(LayerNorm(32, bias=False)(x), nn.LayerNorm(32, bias=False)(x))


@pytest.mark.parametrize("N", [5 * BLOCKS, 5 * BLOCKS + 1])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (1,), (), (2, 1)])
def test_the_product_of_one_row_by_blocks_is_that_of_all_rows(shape, bias, N):
    torch.manual_seed(0)
    K = 48
    x, weight, b = torch.randn(*shape, K), torch.randn(N, K), torch.randn(N) if bias else None
    exact = F.linear(x.double(), weight.double(), b if b is None else b.double())
    with torch.no_grad():
        y = linear(x, weight, b)
    assert y.shape == (*shape, N)
    assert judge("y", y, F.linear(x, weight, b), exact).within


def test_one_row_has_its_gradient_where_one_is_asked_for():
    x, weight = torch.randn(1, 48), torch.randn(2 * BLOCKS, 48, requires_grad=True)
    linear(x, weight).sum().backward()
    torch.testing.assert_close(weight.grad, x.expand(2 * BLOCKS, 48))


def test_gelu_is_the_tanh_form():
    layer, x = GELU(GPTConfig(n_embd=12)), torch.randn(4, 12)
    h = layer.c_fc(x)
    gelu = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    torch.testing.assert_close(layer(x), layer.c_proj(gelu))


def test_swiglu_gates_with_silu():
    layer, x = SwiGLU(GPTConfig(n_embd=12, mlp="swiglu")), torch.randn(4, 12)
    gate, up = layer.w_gate(x), layer.w_up(x)
    torch.testing.assert_close(layer(x), layer.w_down(gate * torch.sigmoid(gate) * up))


@pytest.mark.parametrize("width", [192, 384, 768, 1024, 1280, 1600])
def test_swiglu_has_the_parameters_of_the_gelu_layer(width):
    """At equal width it would have 1.5 times as many."""

    def count(**options):
        config = GPTConfig(n_head=4, n_embd=width, bias=False, **options)
        layer = SwiGLU(config) if config.mlp == "swiglu" else GELU(config)
        return sum(p.numel() for p in layer.parameters())

    assert count(mlp="swiglu") == pytest.approx(count(), rel=0.011)
    assert count(mlp="swiglu", n_inner=4 * width) == 1.5 * count()


def test_sinusoidal_positions_follow_vaswani():
    """Also far out, to a rounding."""
    table = create_sinusoidal_positions(100_001, 16)
    assert table.shape == (100_001, 16)
    for t, i in [(0, 0), (3, 0), (49, 7), (10, 3), (99_999, 0), (100_000, 1), (100_000, 3)]:
        angle = t / 10000 ** (2 * i / 16)
        assert table[t, 2 * i].item() == pytest.approx(math.sin(angle), rel=2**-23)
        assert table[t, 2 * i + 1].item() == pytest.approx(math.cos(angle), rel=2**-23)


def test_sinusoidal_positions_come_on_the_default_device():
    with torch.device("meta"):
        assert create_sinusoidal_positions(4, 8).device.type == "meta"
    assert create_sinusoidal_positions(4, 8).dtype == torch.float32


def test_sinusoidal_positions_need_an_even_width():
    with pytest.raises(ValueError, match="d_model=7"):
        create_sinusoidal_positions(4, 7)
