"""Attention in autograd and torch.compile, as operators of PyTorch, and what it refuses."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import kernels._attention.operators
from kernels.attention import attention, attention_qkvpacked
from kernels.testing import compare
from tests.kernels.attention import bounds, check, qkv, reference
from tests.kernels.fused import MARKS, check_compiles, check_double_use, randn

pytestmark = MARKS


@pytest.mark.parametrize("trained", ["q", "k", "v", "qk", "qv", "kv"])
def test_frozen_inputs_get_no_gradient(trained, deterministic, device):
    inputs = qkv((1, 20, 1, 16), torch.float32, device, grad=False)
    inputs = {name: x.requires_grad_(name in trained) for name, x in inputs.items()}
    report = check(inputs, deterministic=deterministic)
    assert set(report) == {"out", *(f"d{name}" for name in trained)}


def test_the_graph_of_the_one_pass_backward_can_be_used_twice(device):
    inputs = qkv((2, 20, 1, 16), torch.float32, device)
    check_double_use(partial(attention, deterministic=False), inputs)


@pytest.mark.parametrize("shape", [(0, 8, 2, 16), (2, 8, 0, 16), (2, 0, 2, 16)], ids=str)
def test_empty_input_gives_empty_output_and_gradients(shape, deterministic, device):
    function = partial(attention, deterministic=deterministic)
    compare(function, reference, qkv(shape, torch.float32, device))


@pytest.mark.parametrize(
    "options", [{}, {"window": 5, "dropout_p": 0.1}], ids=["plain", "window and dropout"]
)
def test_compiles_without_a_graph_break(options, device):
    def model(qkv: Tensor) -> Tensor:
        q, k, v = (2 * qkv).unbind(2)
        return attention(q, k, v, **options) + attention_qkvpacked(2 * qkv, **options)

    check_compiles(model, [randn(1, 8, 3, 1, 16, device=device).requires_grad_()])


@pytest.mark.parametrize("seeded", [False, True])
def test_operators_pass_opcheck(seeded, device):
    ops = torch.ops.gpt2_triton
    q, k, v = (torch.randn(1, 8, 1, 16, device=device) for _ in range(3))
    seed = torch.tensor([1], device=device) if seeded else None
    documents = bounds(1, 8, [0, 3], device) if seeded else None
    options = (documents, 0.25, 7, 0.1 if seeded else 0.0, False)
    for need_max in (False, True):
        torch.library.opcheck(ops.attention_fwd.default, (q, k, v, seed, *options, need_max))
    o, lse, _ = ops.attention_fwd(q, k, v, seed, *options, False)
    for need_dq, need_dkv in ((True, True), (True, False)) if seeded else ((False, True),):
        torch.library.opcheck(
            ops.attention_bwd.default, (o, q, k, v, o, lse, seed, *options, True, need_dq, need_dkv)
        )
    packed = torch.stack([q, k, v], 2)
    torch.library.opcheck(
        ops.attention_qkvpacked_bwd.default, (o, packed, o, lse, seed, *options, True)
    )


def test_the_global_switch_selects_the_deterministic_backward(device, monkeypatch):
    chosen = []
    launch = kernels._attention.operators._launch_bwd

    def record(*args: Any) -> None:
        chosen.append(args[-1])
        launch(*args)

    monkeypatch.setattr(kernels._attention.operators, "_launch_bwd", record)
    for switch in (True, False):
        torch.use_deterministic_algorithms(switch, warn_only=True)
        attention(**qkv((1, 8, 1, 16), torch.float32, device)).sum().backward()
    assert chosen == [True, False]


# ---- what is refused


def _on(device: torch.device, *shape: int, **kwargs: Any) -> Tensor:
    return torch.zeros(shape, device=device, **kwargs)


@pytest.mark.parametrize(
    ("message", "make"),
    [
        (r"\(B, T, H, D\), got shape \(2, 8, 16\)", lambda d: (_on(d, 2, 8, 16),) * 3),
        (
            r"\(1, 8, 2, 16\) for q, \(1, 8, 1, 16\) for k",
            lambda d: (_on(d, 1, 8, 2, 16), _on(d, 1, 8, 1, 16), _on(d, 1, 8, 2, 16)),
        ),
        (
            r"k and v may have more positions\), got .* \(1, 7, 1, 16\) for k",
            lambda d: (_on(d, 1, 8, 1, 16), *(_on(d, 1, 7, 1, 16),) * 2),
        ),
        ("one shape", lambda d: (*(_on(d, 1, 8, 1, 16),) * 2, _on(d, 1, 9, 1, 16))),
        ("1..256, got 257", lambda d: (_on(d, 1, 8, 1, 257),) * 3),
        ("1..256, got 0", lambda d: (_on(d, 1, 8, 1, 0),) * 3),
        ("last stride of q must be 1, got 2", lambda d: (_on(d, 1, 8, 1, 32)[..., ::2],) * 3),
        (
            "time stride of q must be below",
            lambda d: (_on(d, 1, 1, 1, 16).as_strided((1, 1, 1, 16), (1, 2**24, 1, 1)),) * 3,
        ),
        ("float64", lambda d: (_on(d, 1, 8, 1, 16, dtype=torch.float64),) * 3),
        (
            "share device and dtype",
            lambda d: (_on(d, 1, 8, 1, 16), _on(d, 1, 8, 1, 16).half(), _on(d, 1, 8, 1, 16)),
        ),
    ],
)
def test_refuses_tensors_that_it_cannot_take(message, make, device):
    with pytest.raises(ValueError, match=message):
        attention(*make(device))


def test_fewer_queries_than_keys_have_no_backward_and_no_documents(device):
    k = torch.zeros(1, 8, 1, 16, device=device, requires_grad=True)
    q = k[:, 3:]
    with pytest.raises(ValueError, match=r"as many queries as keys, got 5 and 8; use torch.no_gr"):
        attention(q, k, k)
    with torch.no_grad():
        assert attention(q, k, k).shape == (1, 5, 1, 16)
        with pytest.raises(ValueError, match="documents need as many queries as keys"):
            attention(q, k, k, documents=bounds(1, 8, [2], device))


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("window must be at least 1.*got 0", {"window": 0}),
        ("scale must be positive, got -1", {"scale": -1.0}),
        ("scale must be positive, got nan", {"scale": math.nan}),
        (r"dropout_p must be in \[0, 1\), got 1", {"dropout_p": 1.0}),
        (
            "dropout_seed must be an int64 tensor of one element on .*, got 5",
            {"dropout_p": 0.1, "dropout_seed": 5},
        ),
        (
            r"got tensor\(\[\], dtype=torch.int64\)",
            {"dropout_p": 0.1, "dropout_seed": torch.zeros(0, dtype=torch.int64)},
        ),
        (r"got tensor\(\[0.\]\)", {"dropout_p": 0.1, "dropout_seed": torch.zeros(1)}),
    ],
)
def test_refuses_options_out_of_range(message, options, device):
    packed = torch.zeros(1, 8, 3, 1, 16, device=device)
    with pytest.raises(ValueError, match=message):
        attention(*packed.unbind(2), **options)
    with pytest.raises(ValueError, match=message):
        attention_qkvpacked(packed, **options)


def test_packed_refuses_what_is_not_packed(device):
    with pytest.raises(ValueError, match=r"\(B, T, 3, H, D\), got shape \(1, 8, 2, 1, 16\)"):
        attention_qkvpacked(torch.zeros(1, 8, 2, 1, 16, device=device))
