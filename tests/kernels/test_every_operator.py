"""What holds for every operator: the same bits from the same inputs, and calls that are refused.

The same call is made 100 times on a GPU. What memory holds before a kernel writes it is another
byte each time, so that an element which is read before it is written shows as well.
"""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from kernels.attention import attention, attention_qkvpacked
from kernels.cross_entropy import cross_entropy
from kernels.gelu import gelu_tanh
from kernels.layer_norm import add_layer_norm, layer_norm
from kernels.linear_cross_entropy import linear_cross_entropy
from kernels.rms_norm import add_rms_norm, rms_norm
from kernels.swiglu import swiglu, swiglu_packed
from kernels.testing import Function, quantities
from tests.campaigns.stress.campaign import OPERATORS
from tests.campaigns.stress.memory import Memory
from tests.kernels.attention import check, qkv
from tests.kernels.fused import CUDA, check_compiles, check_double_use, randn

# The interpreter is deterministic: there, what counts is memory that is read before it is written.
REPETITIONS = 100 if CUDA else 6


def problem(name, large, device, n=12):
    """An operator with its options, and its arguments: small ones, or those of a training step."""
    b, t, h, d = (2, 1024, 12, 64) if large else (n // 12, n + 8, 1, 16)
    n, c, v = (8191, 1600, 50257) if large else (n, 70, 90)
    dtype = torch.bfloat16 if large else torch.float32

    def random(*shape: int) -> Tensor:
        return randn(*shape, dtype=dtype, device=device).requires_grad_()

    targets = torch.randint(0, v, (n // 4,), device=device)
    heads = {key: random(b, t, h, d) for key in ("q", "k", "v")}
    rows = {"x": random(n, c), "weight": random(c)}
    gates = {"gate": random(n, c), "up": random(n, c)}
    # The one-pass backward adds up dq atomically, in any order: see the test below.
    two_pass: dict[str, Any] = {"deterministic": True}
    if large:  # Triton's interpreter takes long to draw the mask
        two_pass |= {"dropout_p": 0.1, "dropout_seed": torch.tensor([5], device=device)}
    problems: dict[str, tuple[Function, dict[str, Any]]] = {
        "attention": (partial(attention, **two_pass), heads),
        "attention_qkvpacked": (
            partial(attention_qkvpacked, **two_pass), {"qkv": random(b, t, 3, h, d)},
        ),
        "rms_norm": (rms_norm, rows),
        "add_rms_norm": (add_rms_norm, rows | {"residual": random(n, c)}),
        "layer_norm": (layer_norm, rows | {"bias": random(c)}),
        "add_layer_norm": (add_layer_norm, rows | {"residual": random(n, c), "bias": random(c)}),
        "gelu_tanh": (gelu_tanh, {"x": random(n, c), "bias": random(c)}),
        "swiglu": (swiglu, gates),
        "swiglu_packed": (swiglu_packed, {"gate_up": random(n, 2 * c)}),
        "cross_entropy": (
            partial(cross_entropy, label_smoothing=0.1, z_loss=1e-4),
            {"logits": random(n // 4, v), "targets": targets},
        ),
        "linear_cross_entropy": (
            partial(linear_cross_entropy, chunk_bytes=(819 if large else 1) * v * dtype.itemsize),
            {"x": random(n // 4, 64), "weight": random(v, 64), "targets": targets},
        ),
    }  # fmt: skip
    return problems[name]


def once(function: Function, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Outputs and gradients by name, for the same upstream gradients each time."""
    torch.manual_seed(0)
    return quantities(function, inputs)


def check_bits(name: str, large: bool, device: torch.device) -> None:
    function, inputs = problem(name, large, device)
    first = once(function, inputs)
    assert first.keys() >= {f"d{key}" for key, x in inputs.items() if x.is_floating_point()}
    for repetition in range(REPETITIONS):
        with Memory(device, fill=51 * repetition % 256).watch():
            again = once(function, inputs)
        for quantity, x in first.items():
            assert torch.equal(again[quantity], x), f"{quantity}, repetition {repetition}"


@pytest.mark.parametrize("name", OPERATORS)
def test_same_bits(name, device):
    check_bits(name, False, device)


@pytest.mark.parametrize("name", OPERATORS)
def test_frozen_inputs_get_no_gradient_and_the_others_the_same(name, device):
    function, inputs = problem(name, False, device)
    whole = once(function, inputs)
    leaves = {key for key, x in inputs.items() if x.is_floating_point()}
    for trained in [{key} for key in leaves] + [leaves - {key} for key in leaves if leaves > {key}]:
        given = {key: x.detach().requires_grad_(key in trained) for key, x in inputs.items()}
        found = once(function, given)
        assert {key for key in found if key[0] == "d"} == {f"d{key}" for key in trained}
        assert all(torch.equal(x, whole[key]) for key, x in found.items())


@pytest.mark.parametrize("name", OPERATORS)
def test_use_of_the_graph(name, device):
    """It is made on demand, and used twice; the losses, which overwrite what they saved, refuse."""
    function, inputs = problem(name, False, device)
    check_double_use(function, inputs, refused="cross_entropy" in name)
    with torch.no_grad():
        outputs = function(**inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert not any(out.requires_grad for out in outputs)


@pytest.mark.parametrize("name", OPERATORS)
def test_compiles_without_a_graph_break(name, device):
    function, inputs = problem(name, False, device)

    def model(*tensors: Tensor) -> Tensor:
        between = [2 * x if x.is_floating_point() else x for x in tensors]
        outputs = function(**dict(zip(inputs, between, strict=True)))
        return outputs[0] + outputs[1] if isinstance(outputs, tuple) else outputs

    check_compiles(model, list(inputs.values()))


@pytest.mark.parametrize("name", OPERATORS)
def test_compiled_code_is_reused_for_other_lengths(name, device):
    function = problem(name, False, device)[0]
    counter = CompileCounter()
    compiled = torch.compile(function, fullgraph=True, backend=counter, dynamic=True)
    for n in (24, 48, 36):
        inputs = problem(name, False, device, n)[1]
        torch.testing.assert_close(compiled(**inputs), function(**inputs))
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", OPERATORS)
def test_refuses_cpu_tensors_without_the_interpreter(name, monkeypatch):
    function, inputs = problem(name, False, torch.device("cpu"))
    monkeypatch.setattr("kernels._common.launch.INTERPRETED", False)
    with pytest.raises(ValueError, match="TRITON_INTERPRET=1"):
        function(**inputs)


@pytest.mark.cuda
@pytest.mark.parametrize("name", OPERATORS)
def test_cuda_same_bits_at_the_size_of_training(name, device):
    check_bits(name, True, device)


@pytest.mark.cuda
def test_cuda_of_the_one_pass_backward_only_dq_varies_and_within_its_budget(device):
    """It promises no bits. Nothing but dq is added up in an order that varies."""
    inputs = qkv((1, 1024, 4, 64), torch.bfloat16, device)
    one_pass = partial(attention, deterministic=False)
    first = once(one_pass, inputs)
    for _ in range(REPETITIONS):
        again = once(one_pass, inputs)
        assert all(torch.equal(again[name], first[name]) for name in ("out", "dk", "dv"))
        check(inputs, deterministic=False)
