"""LayerNorm, alone and after the residual addition, against its reference.

The launchers are those of RMSNorm, whose tests go deeper: walks over tiles, wide rows, dtypes.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.layer_norm import (
    add_layer_norm,
    add_layer_norm_reference,
    layer_norm,
    layer_norm_reference,
)
from kernels.testing import Quantity, compare
from tests.kernels.fused import (
    DTYPES,
    MARKS,
    check_compiles,
    check_double_use,
    every_layout,
    one_multiprocessor,
    randn,
)

pytestmark = MARKS
EPS = 1e-5


def inputs(
    *shape: int,
    dtype: torch.dtype = torch.float32,
    residual: torch.dtype | None = None,
    vectors: torch.dtype | None = None,
    bias: bool = True,
    device: torch.device,
) -> dict[str, Tensor | None]:
    """Arguments by name, all of which ask for a gradient; bias may be None."""
    made = {"x": randn(*shape, dtype=dtype, device=device)}
    if residual is not None:
        made["residual"] = randn(*shape, dtype=residual, device=device)
    made["weight"] = randn(shape[-1], dtype=vectors or dtype, device=device)
    if bias:
        made["bias"] = randn(shape[-1], dtype=vectors or dtype, device=device)
    return {name: x.requires_grad_() for name, x in made.items()} | ({} if bias else {"bias": None})


def check(given: dict[str, Any], **options: Any) -> dict[str, Quantity]:
    """Compare with the reference.

    dx is a difference of float32 numbers as large as dy * weight / std(x), which cancels in short
    rows: always where the width is 1 or 2. And x - mean has the rounding of the mean.
    """
    x, weight = given["x"].detach().double(), given["weight"].detach().double()
    if "residual" in given:
        x = x + given["residual"].detach().double()
    rstd = torch.rsqrt(x.var(-1, correction=0) + EPS).max()
    off = float((x.mean(-1).abs() * rstd).max() * weight.abs().max())
    size = float(4 * rstd * weight.abs().max()) * (1 + off)
    added = "residual" in given
    return compare(
        add_layer_norm if added else layer_norm,
        add_layer_norm_reference if added else layer_norm_reference,
        given,
        cancelled={
            "dx": size,
            "dresidual": size,
            "dweight": 4 * off * len(x),
            "out0" if added else "out": off,
        },
        **options,
    )


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(3, 1), (3, 2), (1, 3), (2, 7, 113), (9, 257), (2, 1000)], ids=str
)
def test_matches_reference(
    shape: tuple[int, ...], dtype: torch.dtype, bias: bool, device: torch.device
) -> None:
    check(inputs(*shape, dtype=dtype, bias=bias, device=device))


@pytest.mark.parametrize("width", [768, 1024, 1280, 1600])
def test_matches_reference_at_the_widths_of_gpt2(width: int, device: torch.device) -> None:
    half, single = torch.float16, torch.float32
    check(inputs(3, width, dtype=half, residual=single, vectors=single, device=device))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("residual", DTYPES, ids=str)
def test_add_takes_two_dtypes(
    dtype: torch.dtype, residual: torch.dtype, device: torch.device
) -> None:
    given = inputs(3, 257, dtype=dtype, residual=residual, vectors=torch.float32, device=device)
    y, total = add_layer_norm(**given)
    assert (y.dtype, total.dtype) == (dtype, residual)
    assert add_layer_norm(**given, dtype=torch.float32)[0].dtype == torch.float32
    check(given)


@every_layout
def test_any_layout_in_and_upstream(layout: Any, device: torch.device) -> None:
    given = inputs(2, 5, 20, residual=torch.float32, device=device)
    for name in ("x", "residual"):
        given[name] = layout(given[name].detach()).requires_grad_()
    dense = randn(2, 5, 20, device=device)
    check(given, upstream=[layout(dense), layout(dense.flip(0))])


@pytest.mark.parametrize("rows", [7, 50])
def test_programs_that_walk_over_many_tiles(
    rows: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_multiprocessor(monkeypatch)
    check(inputs(rows, 300, device=device))


@pytest.mark.parametrize("mean", [100.0, 1e4])
def test_a_large_mean_costs_no_more_than_in_pytorch(mean: float, device: torch.device) -> None:
    """The variance is that about the mean, not mean(x^2) - mean(x)^2, also past a row's end."""
    given = inputs(4, 50, device=device)
    given["x"] = (given["x"].detach() + mean).requires_grad_()
    check(given)


def test_constant_rows_give_the_bias(device: torch.device) -> None:
    x, bias = torch.full((3, 40), 7.0, device=device), randn(40, device=device)
    y = layer_norm(x, torch.ones(40, device=device), bias)
    torch.testing.assert_close(y, bias.expand(3, 40), rtol=0, atol=1e-3)


@pytest.mark.parametrize("trained", [("x",), ("weight",), ("bias",), ("x", "bias"), ("residual",)])
def test_frozen_inputs_get_no_gradient(trained: tuple[str, ...], device: torch.device) -> None:
    given = inputs(5, 30, residual=torch.float32, device=device)
    given = {name: x.detach().requires_grad_(name in trained) for name, x in given.items()}
    assert set(check(given)) == {"out0", "out1", *(f"d{name}" for name in trained)}


def test_the_graph_can_be_used_twice_but_not_differentiated(device: torch.device) -> None:
    given = inputs(4, 30, residual=torch.float32, device=device)
    check_double_use(add_layer_norm, given)
    del given["residual"]
    check_double_use(layer_norm, given)


def test_empty_input_gives_zero_gradients_of_the_vectors(device: torch.device) -> None:
    x = torch.empty((0, 8), device=device, requires_grad=True)
    weight, bias = (torch.ones(8, device=device, requires_grad=True) for _ in range(2))
    layer_norm(x, weight, bias).sum().backward()
    assert not weight.grad.any()
    assert not bias.grad.any()


def test_compiles_without_a_graph_break(device: torch.device) -> None:
    def model(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y, total = add_layer_norm(2 * x, residual, weight, bias)
        return y + total + layer_norm(total, weight, None)

    check_compiles(model, list(inputs(4, 30, residual=torch.float32, device=device).values()))


@pytest.mark.parametrize(
    ("message", "bias"),
    [
        (r"bias must be \(8,\) torch.float32 .* got \(7,\)", torch.zeros(7)),
        (r"bias must be .* got \(8,\) torch.float16", torch.zeros(8).half()),
        ("float64", torch.zeros(8).double()),
    ],
)
def test_refuses_a_bias_that_it_cannot_take(
    message: str, bias: Tensor, device: torch.device
) -> None:
    x, weight = torch.zeros(3, 8, device=device), torch.zeros(8, device=device)
    with pytest.raises(ValueError, match=message):
        layer_norm(x, weight, bias.to(device))
    with pytest.raises(ValueError, match=message):
        add_layer_norm(x, x, weight, bias.to(device))


def test_refuses_eps_of_zero(device: torch.device) -> None:
    x, weight = torch.zeros(3, 8, device=device), torch.zeros(8, device=device)
    with pytest.raises(ValueError, match="layer_norm: eps must be positive, got -1"):
        layer_norm(x, weight, None, -1.0)
    with pytest.raises(ValueError, match="add_layer_norm: eps must be positive, got nan"):
        add_layer_norm(x, x, weight, None, math.nan)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [768, 1024, 1280, 1600, 5000])
def test_cuda_matches_reference_at_full_size(
    width: int, dtype: torch.dtype, device: torch.device
) -> None:
    check(inputs(8191, width, dtype=dtype, vectors=torch.float32, device=device))
    check(
        inputs(
            8191, width, dtype=dtype, residual=torch.float32, vectors=torch.float32, device=device
        )
    )


@pytest.mark.cuda
def test_cuda_gives_the_same_bits_every_time(device: torch.device) -> None:
    given = inputs(8191, 768, dtype=torch.bfloat16, vectors=torch.float32, device=device)
    leaves = list(given.values())
    y = layer_norm(**given)
    dy = torch.randn_like(y)
    first = torch.autograd.grad(y, leaves, dy, retain_graph=True)
    for _ in range(20):
        again = torch.autograd.grad(y, leaves, dy, retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
