"""SwiGLU's elementwise part, from two tensors and packed, against its reference."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.swiglu import swiglu, swiglu_packed, swiglu_reference
from kernels.testing import compare
from tests.kernels.fused import DTYPES, MARKS, check_tail, every_layout, randn

pytestmark = MARKS


def inputs(*shape, dtype=torch.float32, device):
    gate, up = (2 * randn(*shape, dtype=dtype, device=device) for _ in range(2))
    return {"gate": gate.requires_grad_(), "up": up.requires_grad_()}


def packed(*shape, dtype=torch.float32, device):
    """The same, given the shape of the result."""
    both = 2 * randn(*shape[:-1], 2 * shape[-1], dtype=dtype, device=device)
    return {"gate_up": both.requires_grad_()}


def packed_reference(gate_up: Tensor) -> Tensor:
    return swiglu_reference(*gate_up.chunk(2, -1))


def check(given: dict[str, Tensor], **options: Any) -> None:
    apart = "gate" in given
    functions = (swiglu, swiglu_reference) if apart else (swiglu_packed, packed_reference)
    compare(*functions, given, **options)


SHAPES = [(1, 1), (3, 1), (1, 3), (2, 7, 113), (9, 257), (3, 1000), (70, 128), (5,)]


@pytest.mark.parametrize("make", [inputs, packed])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_reference(shape, dtype, make, device):
    check(make(*shape, dtype=dtype, device=device))


@pytest.mark.parametrize("make", [inputs, packed])
@pytest.mark.parametrize("width", [2048, 2752, 3392, 4288])
def test_matches_reference_at_the_widths_of_gpt2(width, make, device):
    check(make(5, width, dtype=torch.float16, device=device))


@every_layout
@pytest.mark.parametrize("make", [inputs, packed])
def test_takes_any_upstream_gradient(layout, make, device):
    upstream = layout(randn(2, 5, 20, device=device))
    check(make(2, 5, 20, device=device), upstream=[upstream])


@every_layout
@pytest.mark.parametrize("name", ["gate", "up", "gate_up"])
def test_reads_any_layout(layout, name, device):
    given = (packed if name == "gate_up" else inputs)(2, 5, 20, device=device)
    given[name] = layout(given[name].detach()).requires_grad_()
    check(given)


def test_reads_views_of_one_projection_in_place(device):
    gate, up = randn(4, 60, device=device).chunk(2, -1)
    check({"gate": gate.requires_grad_(), "up": up.requires_grad_()})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_size_of_gate(dtype, device):
    sizes = torch.logspace(-8, math.log10(min(torch.finfo(dtype).max, 1e30)) - 0.01, 60)
    gate = torch.cat([-sizes, torch.zeros(1), sizes]).to(device, dtype).requires_grad_()
    up = torch.ones_like(gate).requires_grad_()
    check({"gate": gate, "up": up}, upstream=[torch.ones_like(gate)])


@pytest.mark.parametrize("make", [inputs, packed])
def test_a_large_gradient_meets_a_gate_that_is_shut(make, device):
    """dy * gate overflows; dy * silu(gate) does not, and inf * 0 would be NaN."""
    given = make(3, 8, device=device)
    first = next(iter(given.values()))
    with torch.no_grad():
        first[:, :8] = -110.0
    dy = torch.full((3, 8), 1e37, device=device)
    check(given, upstream=[dy])


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8), (3, 0)], ids=str)
def test_empty_input(shape, device):
    check(inputs(*shape, device=device))
    check(packed(*shape, device=device))


def test_operators_pass_opcheck(device):
    ops = torch.ops.gpt2_triton
    x, both = randn(3, 20, device=device), randn(3, 40, device=device)
    torch.library.opcheck(ops.swiglu_fwd.default, (x, x + 1))
    torch.library.opcheck(ops.swiglu_bwd.default, (x, x, x + 1))
    torch.library.opcheck(ops.swiglu_packed_fwd.default, (both,))
    torch.library.opcheck(ops.swiglu_packed_bwd.default, (x, both))


def test_refuses_what_it_cannot_take(device):
    x = torch.zeros(3, 8, device=device)
    with pytest.raises(ValueError, match=r"one shape .* got \(3, 8\) and \(1, 8\)"):
        swiglu(x, x[:1])
    with pytest.raises(ValueError, match="share device and dtype"):
        swiglu(x, x.half())
    with pytest.raises(ValueError, match=r"\(\.\.\., 2F\), got shape \(3, 7\)"):
        swiglu_packed(x[:, :7])
    with pytest.raises(ValueError, match="float64"):
        swiglu_packed(x.double())


@pytest.mark.cuda
@pytest.mark.parametrize("make", [inputs, packed])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [2048, 2752, 3392, 4288])
def test_cuda_matches_reference_at_full_size(width, dtype, make, device):
    check(make(4095, width, dtype=dtype, device=device))


@pytest.mark.cuda
def test_cuda_more_than_2_to_31_elements(device):
    both = torch.zeros(2**31 // 8192 + 1000, 8192, dtype=torch.bfloat16, device=device)
    check_tail(swiglu_packed, both, 3)
