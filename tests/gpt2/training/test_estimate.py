"""Cost of a training step: FLOPs by both conventions, memory held to what is really allocated."""

import dataclasses
import gc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode

import gpt2.loss
from gpt2.common.devices import human_bytes
from gpt2.config import PRESETS, GPTConfig
from gpt2.model import GPT
from gpt2.training.estimate import Memory, flops_per_token, flops_per_token_nanogpt, training_memory
from gpt2.training.optim import build_optimizers
from gpt2.training.step import train_step
from kernels._common.launch import INTERPRETED
from kernels.interpreter import batched

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16


@pytest.mark.parametrize(
    ("preset", "exact", "nanogpt"),
    [
        ("gpt2", 0.798, 0.855),
        ("gpt2-medium", 2.272, 2.425),
        ("gpt2-large", 4.917, 5.203),
        ("gpt2-xl", 9.803, 10.280),
    ],
)
def test_gflops_per_token_are_those_published_for_gpt2(preset, exact, nanogpt):
    config = PRESETS[preset]
    assert flops_per_token(config, 1024) / 1e9 == pytest.approx(exact, rel=1e-3)
    assert flops_per_token_nanogpt(config, 1024) / 1e9 == pytest.approx(nanogpt, rel=1e-3)


def test_a_window_saves_attention_flops_only() -> None:
    full, narrow = GPTConfig(), GPTConfig(window=64)
    saved = flops_per_token(full, 1024) - flops_per_token(narrow, 1024)
    seen = sum(min(i + 1, 64) for i in range(1024)) / 1024
    assert saved == pytest.approx(12 * 12 * 768 * (1025 / 2 - seen))


class _Collect(TorchDispatchMode):
    """Collects garbage behind our kernels: Triton's interpreter leaves tensors in cycles."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.namespace == "gpt2_triton":
            gc.collect()
        return result


@contextmanager
def _cheap_collection() -> Iterator[None]:
    gc.collect()
    gc.freeze()
    try:
        yield
        gc.collect()
    finally:
        gc.unfreeze()


def allocations(prof: profile) -> Iterator[tuple[str, int]]:
    """("", bytes now in use) at every change, and (name, bytes) at every `record_function`."""
    events, stack = [], list(prof.profiler.kineto_results.experimental_event_tree())
    while stack:
        event = stack.pop()
        stack.extend(event.children)
        if event.tag == _EventType.Allocation or event.name.startswith("mark: "):
            events.append(event)
    sizes: dict[int, int] = {}  # blocks from before the profile are freed in it, too
    in_use = 0
    for event in sorted(events, key=lambda e: e.start_time_ns):
        if event.tag != _EventType.Allocation:
            yield event.name.removeprefix("mark: "), in_use
            continue
        block: Any = event.extra_fields
        if block.alloc_size > 0:
            sizes[block.ptr] = block.alloc_size
            in_use += block.alloc_size
        else:
            in_use -= sizes.pop(block.ptr, 0)
        yield "", in_use


def measure(config, *, batch_size, dtype, optimizer="adamw", grad_accum=1):
    """Bytes in use: at rest, after a forward, and at most in a step (the second)."""
    interpreted = "triton" in vars(config).values()

    def mark(name: str) -> None:
        with record_function(f"mark: {name}"):
            pass

    def autocast() -> Any:
        return nullcontext() if dtype == FP32 else torch.autocast("cpu", dtype=dtype)

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        model = GPT(config)
        mark("model")
        optimizers = build_optimizers(model, lr=1e-3, optimizer=optimizer, dtype=dtype)  # type: ignore[arg-type]
        x = torch.randint(config.vocab_size, (batch_size, config.block_size))
        batches = grad_accum * [(x, x)]
        train_step(model, optimizers, batches, autocast=autocast())
        with _cheap_collection(), _Collect() if interpreted else nullcontext():
            mark("step")
            train_step(model, optimizers, batches, autocast=autocast())
        mark("rest")
        with _cheap_collection(), autocast():
            kept = model(x, x)
        mark("forward")
        del kept
    at, peak = {}, 0
    for name, in_use in allocations(prof):
        if name:
            at[name] = in_use
        if "step" in at and "rest" not in at:
            peak = max(peak, in_use)
    moments = [t for o in optimizers for state in o.state.values() for t in state.values()]
    return SimpleNamespace(
        weights=at["model"],
        optimizer=sum(t.nbytes for t in moments),
        activations=at["forward"] - at["rest"],
        peak=peak,
    )


def check(config: GPTConfig, **settings: Any) -> Memory:
    """Hold the estimate to the measurement."""
    measured = measure(config, **settings)
    memory = training_memory(config, seq_len=config.block_size, device_type="cpu", **settings)
    assert memory.weights == measured.weights
    assert memory.optimizer == measured.optimizer
    assert sum(memory.activations.values()) == pytest.approx(measured.activations, rel=0.02)
    assert memory.peak == pytest.approx(measured.peak, rel=0.05)
    return memory


@pytest.fixture
def _no_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the buffer of logits that gpt2.loss keeps."""
    monkeypatch.setattr(gpt2.loss, "_workspace", gpt2.loss._Workspace())


SMALL = GPTConfig(n_layer=2, n_head=4, n_embd=128, vocab_size=1000, block_size=128)
POST = {"norm_position": "post", "norm": "quicknorm", "mlp": "swiglu"}
OURS = {"attn": "triton", "norm_kernel": "triton", "mlp_kernel": "triton", "loss_kernel": "triton"}


@pytest.mark.usefixtures("_no_buffer")
@pytest.mark.parametrize(
    ("options", "dtype", "batch_size"),
    [
        ({}, FP32, 2),
        ({}, BF16, 4),
        (POST, FP32, 4),
        (POST, BF16, 2),
        ({"attn": "naive"}, FP32, 2),
        ({"attn": "naive"}, BF16, 2),
        ({"dropout": 0.1}, BF16, 2),
        ({"attn": "naive", "dropout": 0.1, "norm_position": "post", "tie": False}, BF16, 4),
        ({"attn": "naive", "dropout": 0.1, "mlp": "swiglu"}, FP32, 2),
        ({"norm": "quicknorm", "tie": False, "positions": "sinusoidal", "window": 16}, BF16, 2),
        ({"norm_position": "post", "bias": False, "window": 16}, FP32, 2),
        ({"recompute": "block", "n_layer": 6}, FP32, 4),
        ({"recompute": "block", "n_layer": 6, "dropout": 0.1}, BF16, 4),
        ({**POST, "recompute": "block", "n_layer": 6}, BF16, 4),
        ({"recompute": "block", "attn": "naive", "n_layer": 6}, BF16, 4),
    ],
)
def test_memory_is_what_is_allocated(options: dict[str, Any], dtype: Any, batch_size: int) -> None:
    check(dataclasses.replace(SMALL, **options), batch_size=batch_size, dtype=dtype)


FEW_TOKENS = dataclasses.replace(SMALL, block_size=16)


@pytest.mark.usefixtures("_no_buffer")
@pytest.mark.parametrize(
    ("moment", "config", "settings"),
    [
        ("forward of the head", SMALL, {}),
        ("forward of the head", FEW_TOKENS, {"grad_accum": 2}),
        ("forward of the head", dataclasses.replace(SMALL, vocab_size=8000), {}),
        ("backward of the MLP", SMALL, {"batch_size": 16, "dtype": FP32}),
        (
            "backward of the attention",
            dataclasses.replace(SMALL, attn="naive", block_size=256, vocab_size=100, n_embd=64),
            {},
        ),
        ("backward of the embedding", FEW_TOKENS, {}),
        (
            "optimizer step",
            dataclasses.replace(FEW_TOKENS, tie=False),
            {"optimizer": "muon", "dtype": FP32},
        ),
    ],
)
def test_the_peak_is_where_it_is_said_to_be(moment, config, settings):
    memory = check(config, **({"batch_size": 2, "dtype": BF16} | settings))
    assert memory.moment == moment


@pytest.mark.usefixtures("_no_buffer")
@pytest.mark.skipif(not INTERPRETED, reason="on a GPU another test measures")
@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")
@pytest.mark.parametrize("options", [{}, POST | {"loss_kernel": "torch"}])
def test_memory_with_our_kernels(options: dict[str, Any]) -> None:
    shape = {"n_layer": 1, "n_head": 1, "n_embd": 32, "vocab_size": 100, "block_size": 16}
    with batched(False):  # which allocates outside of PyTorch
        check(GPTConfig(**shape | OURS | options), batch_size=2, dtype=FP16 if options else FP32)


@pytest.mark.cuda
@pytest.mark.parametrize("options", [{}, POST, {"attn": "naive", "dropout": 0.1}, OURS])
def test_the_peak_on_a_gpu(options: dict[str, Any]) -> None:
    config = GPTConfig(n_layer=4, **options)
    model = GPT(config).cuda()
    optimizers = build_optimizers(model, lr=1e-3)
    x = torch.randint(config.vocab_size, (8, 1024), device="cuda")
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        train_step(model, optimizers, [(x, x)], autocast=torch.autocast("cuda", dtype=BF16))
    memory = training_memory(config, batch_size=8, seq_len=1024, dtype=BF16)
    assert memory.peak == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.1)


def test_a_line_names_every_item() -> None:
    memory = training_memory(GPTConfig(), batch_size=4, seq_len=1024, dtype=BF16)
    assert memory.optimizer == pytest.approx(2 * memory.weights, rel=1e-3)
    line = str(memory)
    assert "\n" not in line
    for item in ("weights 475 MiB", "gradients", "optimizer", "activations", "logits", "peak"):
        assert item in line
    assert human_bytes(memory.peak) in line


def test_bytes_are_written_for_people() -> None:
    written = " ".join(human_bytes(n) for n in (5, 2048, 3 << 20, 5 << 30))
    assert written == "5 B 2 KiB 3 MiB 5.00 GiB"
