"""Attention on tensors of any layout, read and written in place, and on packed ones."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from kernels.attention import attention_qkvpacked
from kernels.testing import compare
from tests.kernels.attention import check, qkv, reference
from tests.kernels.fused import DTYPES, MARKS, randn

pytestmark = MARKS


Make = Callable[..., Tensor]


def _packed(make: Make, b: int, t: int, h: int, d: int) -> list[Tensor]:
    return list(make(b, t, 3, h, d).unbind(2))


def _heads_first(make: Make, b: int, t: int, h: int, d: int) -> list[Tensor]:
    return [make(b, h, t, d).transpose(1, 2) for _ in range(3)]


def _time_first(make: Make, b: int, t: int, h: int, d: int) -> list[Tensor]:
    return [make(t, b, h, d).transpose(0, 1) for _ in range(3)]


def _in_nan(make: Make, b: int, t: int, h: int, d: int) -> list[Tensor]:
    """Slices along every axis of a tensor that is NaN elsewhere, at an odd address."""
    views = []
    for _ in range(3):
        room = make(b + 1, t + 5, h + 2, d + 7) * math.nan
        view = room[1:, 2 : t + 2, 1 : h + 1, 3 : d + 3]
        view.copy_(make(b, t, h, d))
        views.append(view)
    return views


def _broadcast(make: Make, b: int, t: int, h: int, d: int) -> list[Tensor]:
    """One batch and one head of keys and values for all."""
    q = make(b, t, h, d)
    k, v = (make(1, t, 1, d).expand(b, t, h, d) for _ in range(2))
    return [q, k, v]


def _mixed(make: Make, b: int, t: int, h: int, d: int) -> list[Tensor]:
    """Another layout for each."""
    layouts = (_packed, _heads_first, _time_first)
    return [layout(make, b, t, h, d)[0] for layout in layouts]


LAYOUTS = [_packed, _heads_first, _time_first, _in_nan, _broadcast, _mixed]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__[1:])
@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 20), (DTYPES[-1], 32)])
def test_reads_any_layout_in_place(layout, dtype, width, deterministic, device):
    tensors = layout(partial(randn, dtype=dtype, device=device), 2, 20, 2, width)
    inputs = {name: x.requires_grad_() for name, x in zip("qkv", tensors, strict=True)}
    check(inputs, deterministic=deterministic)


@pytest.mark.parametrize("layout", ["sum", "heads first", "sliced", "every second"])
def test_takes_any_upstream_gradient(layout, deterministic, device):
    b, t, h, d = shape = (2, 20, 2, 16)
    dense = torch.randn(b, h, t + 2, 2 * d, device=device).transpose(1, 2)
    upstream = {
        "sum": torch.ones((), device=device).expand(shape),
        "heads first": dense.transpose(1, 2)[:, :, :t, :d].contiguous().transpose(1, 2),
        "sliced": dense[:, 1 : t + 1, :, 5 : d + 5],
        "every second": dense[:, :t, :, ::2],
    }[layout]
    check(qkv(shape, torch.float32, device), deterministic=deterministic, do=upstream)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 20, 3, 2, 32), (1, 130, 3, 1, 48)], ids=str)
def test_packed_matches_reference(shape, dtype, deterministic, device):
    compare(
        partial(attention_qkvpacked, deterministic=deterministic),
        lambda qkv: reference(*qkv.unbind(2)),
        {"qkv": randn(*shape, dtype=dtype, device=device).requires_grad_()},
    )


def test_packed_reads_a_slice_of_a_wider_projection(device):
    wide = torch.full((2, 30, 3, 4, 40), math.nan, device=device)
    part = wide[:, :, :, 1:3, 8:24]
    part.copy_(torch.randn(2, 30, 3, 2, 16, device=device))
    compare(
        partial(attention_qkvpacked, window=7, scale=0.3),
        lambda qkv: reference(*qkv.unbind(2), window=7, scale=0.3),
        {"qkv": part.requires_grad_()},
    )
