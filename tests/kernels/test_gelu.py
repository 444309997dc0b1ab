"""GELU in its tanh form, with and without the bias before it, against its reference."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels._common.launch import INTERPRETED
from kernels.gelu import gelu_tanh, gelu_tanh_reference
from kernels.testing import Quantity, compare
from tests.kernels.fused import DTYPES, MARKS, check_tail, every_layout, one_multiprocessor, randn
from tests.kernels.work_counts import count_work

pytestmark = MARKS


def inputs(*shape, dtype=torch.float32, bias=None, device):
    made = {"x": 2 * randn(*shape, dtype=dtype, device=device)}
    if bias is not None:
        made["bias"] = randn(shape[-1], dtype=bias, device=device)
    return {name: x.requires_grad_() for name, x in made.items()}


def check(given: dict[str, Tensor], **options: Any) -> dict[str, Quantity]:
    """Compare with the reference; dbias is a float32 sum over rows, whose terms may cancel."""
    return compare(gelu_tanh, gelu_tanh_reference, given, cancelled={"dbias": 4.0}, **options)


@pytest.mark.parametrize("bias", [None, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 1), (3, 1), (1, 3), (2, 7, 113), (9, 257), (3, 1000), (5,)], ids=str
)
def test_matches_reference(shape, dtype, bias, device):
    check(inputs(*shape, dtype=dtype, bias=bias, device=device))


@pytest.mark.parametrize("width", [3072, 4096, 5120, 6400])
def test_matches_reference_at_the_widths_of_gpt2(width, device):
    check(inputs(5, width, dtype=torch.float16, bias=torch.float32, device=device))


@pytest.mark.parametrize("rows", [1, 8, 9, 100])
def test_programs_that_walk_over_many_tiles(rows, device, monkeypatch):
    """One multiprocessor: a few programs share the rows of a block of columns."""
    one_multiprocessor(monkeypatch)
    check(inputs(rows, 1000, bias=torch.float32, device=device))


@every_layout
@pytest.mark.parametrize("bias", [None, torch.float32], ids=str)
def test_any_layout_in_and_upstream(layout, bias, device):
    given = inputs(2, 5, 20, bias=bias, device=device)
    check(given, upstream=[layout(randn(2, 5, 20, device=device))])
    given["x"] = layout(given["x"].detach()).requires_grad_()
    check(given)


def test_bias_may_be_a_slice(device):
    given = inputs(3, 20, device=device)
    check(given | {"bias": randn(40, device=device)[::2].requires_grad_()})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_size_of_input(dtype, device):
    """From where exp overflows on the left to where the cube does on the right."""
    largest = min(torch.finfo(dtype).max, 1e12)
    sizes = torch.logspace(-8, math.log10(largest) - 0.01, 60, dtype=torch.float64)
    x = torch.cat([-sizes, torch.zeros(1, dtype=torch.float64), sizes]).to(device, dtype)
    given = {"x": x.requires_grad_()}
    check(given, upstream=[torch.ones_like(x)])
    y = gelu_tanh(x)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert torch.equal(y[x >= 10], x[x >= 10])
    assert torch.equal(dx[x >= 10], torch.ones_like(dx[x >= 10]))
    assert (y[x <= -20] == 0).all()
    assert (dx[x <= -20] == 0).all()


@pytest.mark.skipif(not INTERPRETED, reason="launches are counted in the interpreter")
def test_a_frozen_bias_costs_no_sums(device):
    given = inputs(5, 30, bias=torch.float32, device=device)
    given["bias"].requires_grad_(False)
    y = gelu_tanh(**given)
    with count_work() as work:
        y.sum().backward()
    assert len(work.launches) == 1


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8), (3, 0)], ids=str)
def test_empty_input(shape, device):
    check(inputs(*shape, device=device))
    given = inputs(*shape, bias=torch.float32, device=device)
    gelu_tanh(**given).sum().backward()
    assert not given["bias"].grad.any()


@pytest.mark.parametrize("bias", [True, False])
def test_operators_pass_opcheck(bias, device):
    ops = torch.ops.gpt2_triton
    x, vector = randn(3, 20, device=device), randn(20, device=device) if bias else None
    torch.library.opcheck(ops.gelu_tanh_fwd.default, (x, vector))
    torch.library.opcheck(ops.gelu_tanh_bwd.default, (x, x, vector, bias))


@pytest.mark.parametrize(
    ("message", "x", "bias"),
    [
        (r"bias must be \(8,\) .* got \(7,\)", torch.zeros(3, 8), torch.zeros(7)),
        ("got a scalar", torch.zeros(()), None),
        ("float64", torch.zeros(3, 8).double(), None),
        ("int64", torch.zeros(3, 8).long(), None),
    ],
)
def test_refuses_what_it_cannot_take(message, x, bias, device):
    with pytest.raises(ValueError, match=message):
        gelu_tanh(x.to(device), None if bias is None else bias.to(device))


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [3072, 4096, 5120, 6400])
def test_cuda_matches_reference_at_full_size(width, dtype, device):
    check(inputs(4095, width, dtype=dtype, bias=torch.float32, device=device))
    check(inputs(4095, width, dtype=dtype, device=device))


@pytest.mark.cuda
@pytest.mark.parametrize("bias", [True, False])
def test_cuda_more_than_2_to_31_elements(bias, device):
    x = torch.zeros(2**31 // 6400 + 1000, 6400, dtype=torch.bfloat16, device=device)
    vector = randn(6400, device=device) if bias else None
    check_tail(lambda x: gelu_tanh(x, vector), x, 3)
