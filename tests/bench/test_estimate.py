"""The roofline's FLOPs and bytes, held to those of operators that really ran; and the tool."""

import dataclasses
import json
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from bench.estimate.__main__ import Arguments, main, plan
from bench.estimate.roofline import Estimate, Step
from gpt2.config import PORTABLE, PRESETS, GPTConfig
from gpt2.model import GPT
from gpt2.training.estimate import flops_per_token
from kernels._common.launch import INTERPRETED
from tests.gpt2.stand_ins import every_combination
from tests.kernels.fused import one_multiprocessor
from tests.kernels.work_counts import count_work

LAYERS = ["matrix products", "attention", "norms and residuals", "MLP activation", "layers again"]
OURS: dict[str, Any] = dict.fromkeys(PORTABLE, "triton")
SMALL = GPTConfig(n_layer=1, n_head=4, n_embd=128, vocab_size=128, block_size=128)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def step(config: GPTConfig, dtype: Any = "bf16", batch_size: int = 4, **options: Any) -> Step:
    return Step(config, batch_size, config.block_size, dtype, **options)


def run_layers(config: GPTConfig, dtype: str, counter: Any) -> Any:
    """Count a forward and a backward of everything but the head."""
    model = GPT(config)
    x = torch.randint(config.vocab_size, (4, config.block_size))
    off = nullcontext()
    with counter as counted:
        with off if dtype == "fp32" else torch.autocast("cpu", dtype=DTYPES[dtype]):
            y = model.hidden(x)
        y.backward(torch.ones_like(y))
    return counted


class Traffic(TorchDispatchMode):
    """Adds up what operators read and write; views and uninitialised tensors cost nothing."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        leaves = (tree_leaves(tree) for tree in ((args, kwargs), result))
        read, written = ([t for t in tree if isinstance(t, Tensor)] for tree in leaves)
        inputs, outputs = ({t.untyped_storage().data_ptr() for t in x} for x in (read, written))
        is_view = not func._schema.is_mutable and outputs <= inputs
        if not is_view and "empty" not in func.name():
            # An expanded tensor is no larger than its storage.
            self.bytes += sum(min(t.nbytes, t.untyped_storage().nbytes()) for t in read + written)
        return result


def per_layer(config: GPTConfig, count: Any) -> float:
    """What a layer adds to a model's count."""
    more = dataclasses.replace(config, n_layer=config.n_layer + 2)
    return (count(more) - count(config)) / 2


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"attn": "naive", "norm_position": "post"},
        {"mlp": "swiglu", "bias": False},
        {"mlp": "swiglu", "norm_position": "post"},
        {"recompute": "block"},
        {"recompute": "block", "attn": "naive", "norm_position": "post"},
        {"recompute": "block", "mlp": "swiglu"},
    ],
    ids=str,
)
def test_a_layer_moves_the_bytes_that_its_operators_do(options: dict[str, Any], dtype: Any) -> None:
    def measured(config: GPTConfig) -> float:
        return run_layers(config, dtype, Traffic()).bytes

    def estimated(config: GPTConfig) -> float:
        return sum(c.bytes for c in step(config, dtype).costs() if c.part in LAYERS)

    config = dataclasses.replace(SMALL, **options)
    bytes_of_layer = per_layer(config, estimated)
    if config.attn == "sdpa":  # only CUDA kernels sum dq in a buffer of its own
        bytes_of_layer -= 12 * config.n_embd * 4 * config.block_size
    assert bytes_of_layer == pytest.approx(per_layer(config, measured), rel=0.02)


@pytest.mark.skipif(not INTERPRETED, reason="counts are taken in the interpreter")
@pytest.mark.parametrize("options", [{}, {"mlp": "swiglu", "norm": "quicknorm"}], ids=str)
def test_our_kernels_move_the_bytes_that_they_are_said_to(options, monkeypatch):
    one_multiprocessor(monkeypatch)
    config = dataclasses.replace(SMALL, norm_kernel="triton", mlp_kernel="triton", **options)
    work = run_layers(config, "fp16", count_work())
    costs = {c.part: c.bytes for c in step(config, "fp16").costs()}
    expected = costs["norms and residuals"] + costs["MLP activation"]
    if config.mlp == "swiglu":  # PyTorch adds up the gradients of the two products
        expected -= 3 * 2 * 4 * 128 * config.n_embd
    assert work.loaded + work.stored == pytest.approx(expected, rel=0.05)


@every_combination(norm_position=["pre", "post"], recompute=["none", "block"])
def test_flops_are_those_of_the_operators(options):
    config = dataclasses.replace(SMALL, attn="naive", mlp="swiglu", **options)

    def measured(config: GPTConfig) -> float:
        return run_layers(config, "fp32", FlopCounterMode(display=False)).get_total_flops()

    def estimated(config: GPTConfig) -> float:
        return sum(c.flops for c in step(config).costs() if c.part in LAYERS)

    assert per_layer(config, estimated) == per_layer(config, measured)


@pytest.mark.parametrize("options", [{}, {"window": 100, "attn": "triton"}, {"mlp": "swiglu"}])
def test_executed_flops_are_the_exact_ones_and_the_scores_once_more(options):
    config = dataclasses.replace(GPTConfig(vocab_size=128 * 400), **options)
    the_step = step(config)
    executed = sum(cost.flops for cost in the_step.costs())
    scores = the_step.attention().flops / 7
    exact = the_step.tokens * flops_per_token(config, config.block_size)
    assert executed - scores == pytest.approx(exact)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@every_combination(mlp=["gelu", "swiglu"], norm_position=["pre", "post"])
def test_our_kernels_move_no_more_than_pytorch(options, dtype):
    torch_kernels = GPTConfig(**options)
    ours = dataclasses.replace(torch_kernels, **OURS)
    costs, our_costs = step(torch_kernels, dtype).costs(), step(ours, dtype).costs()
    for cost, our_cost in zip(costs, our_costs, strict=True):
        assert our_cost.bytes <= cost.bytes, cost.part
        assert our_cost.flops == cost.flops


def test_time_is_the_longer_of_arithmetic_and_traffic() -> None:
    estimate = Estimate(step(PRESETS["gpt2"], batch_size=8), "A100")
    result = estimate.result()
    for part in result["parts"]:
        times = part["flops"] / 312e12, part["bytes"] / 2039e9
        assert part["seconds"] == max(times)
        assert part["bound"] == ("arithmetic" if times[0] > times[1] else "memory")
    assert result["seconds"] == pytest.approx(sum(p["seconds"] for p in result["parts"]))
    assert result["tokens_per_second"] == pytest.approx(8 * 1024 / result["seconds"])
    assert result["tokens_per_second"] < result["tokens_per_second_by_matmul_rate"]
    assert result["mfu"]["exact"] == pytest.approx(
        result["tokens_per_second"] / result["tokens_per_second_by_matmul_rate"]
    )


def test_the_largest_batch_fits_and_one_more_does_not() -> None:
    the_step = step(PRESETS["gpt2"], batch_size=1)
    largest = Estimate(the_step, "L4").largest_batch()
    steps = [dataclasses.replace(the_step, batch_size=n) for n in (largest, largest + 1)]
    assert steps[0].memory().peak <= 0.95 * 24 * 2**30 < steps[1].memory().peak
    assert Estimate(step(PRESETS["gpt2-xl"]), "T4").largest_batch() == 0


def test_the_tool_prints_tables(capsys: pytest.CaptureFixture[str]) -> None:
    main(Arguments(preset="gpt2-xl", batch_size=8, seq_len=1024, device="h200"))
    printed = capsys.readouterr().out
    expected = (
        "1,557,611,200 parameters", "9.802 G  exact", "10.280 G  nanoGPT's",
        "989 TFLOP/s, 4,800 GB/s", "weights                         5.80 GiB", "kept: attention",
        "the device has 141 GiB",
    )  # fmt: skip
    for text in expected:
        assert text in printed
    assert max(map(len, printed.splitlines())) <= 100


def test_the_tool_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    main(Arguments(preset="demo", device="rtx-4090", kernels="triton", attn="triton", json=True))
    result = json.loads(capsys.readouterr().out)
    assert result["step"]["config"]["loss_kernel"] == "triton"
    assert result["memory"]["peak"] > result["memory"]["weights"] == 4 * result["parameters"]


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ({"preset": "gpt3"}, "choose one of demo"),
        ({"device": "h300"}, "choose one of b200, h200"),
        ({"device": "t4"}, "no bf16"),
        ({"attn": "flash", "dtype": "fp32"}, "fp16 and bf16"),
        ({"window": 0}, "window must be at least 1"),
        ({"vocab_size": 0}, "vocab_size must be at least 1"),
    ],
)
def test_a_mistake_is_named(mistake: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(Arguments(**mistake))
