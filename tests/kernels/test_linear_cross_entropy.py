"""The fused output head and loss against the plain ones: values, memory, products, refusals."""

from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from kernels.linear_cross_entropy import CHUNK_BYTES, chunk_rows, linear_cross_entropy
from kernels.linear_cross_entropy import linear_cross_entropy_reference as reference_loss
from kernels.testing import compare
from tests.kernels.fused import CUDA, DTYPES, LAYOUTS, MARKS, check_never_waits, randn
from tests.kernels.test_cross_entropy import weighted

pytestmark = MARKS
IGNORED = -100


def inputs(n, v, c, dtype=torch.float32, *, device):
    targets = torch.randint(0, v, (n,), device=device)
    targets[1::4] = IGNORED
    return {
        "x": randn(n, c, dtype=dtype, device=device).requires_grad_(),
        "weight": randn(v, c, dtype=dtype, device=device).requires_grad_(),
        "targets": targets,
    }


def check(given: dict[str, Tensor], chunk_bytes: int = CHUNK_BYTES, **options: Any) -> Any:
    return compare(
        partial(linear_cross_entropy, chunk_bytes=chunk_bytes, **options),
        partial(reference_loss, **options),
        given,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 3, 2), (3, 1, 5), (13, 257, 16), (30, 1000, 33)], ids=str)
@pytest.mark.parametrize("chunk_bytes", [1, 4 * 288 * 3, CHUNK_BYTES])
def test_is_within_the_error_budget_for_every_chunking(shape, chunk_bytes, dtype, device):
    check(inputs(*shape, dtype, device=device), chunk_bytes)


@pytest.mark.parametrize(
    "options",
    [{"label_smoothing": 0.1}, {"z_loss": 1e-2}, {"ignore_index": 3}, {"vocab_size": 40}],
    ids=str,
)
def test_options(options, device):
    given = inputs(9, 50, 8, device=device)
    given["targets"] = given["targets"].clamp(max=39)
    if "ignore_index" in options:
        given["targets"][given["targets"] == IGNORED] = options["ignore_index"]
    check(given, 1, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_loss_of_each_token_and_its_weight(reduction, dtype, device):
    given = inputs(9, 50, 8, dtype, device=device)
    for case in (given, weighted(given)):
        check(case, 4 * 64 * 4, reduction=reduction, z_loss=1e-3)
    assert linear_cross_entropy(**given, reduction="none").shape == (9,)


def test_per_token_losses_of_float16_survive_a_small_upstream_gradient(device):
    """Without a loss scaler: the share of a mean over many tokens underflows in 16 bits."""
    given = inputs(9, 50, 8, torch.float16, device=device)
    losses = linear_cross_entropy(**given, reduction="none")
    (dx,) = torch.autograd.grad(losses.sum() * 2.0**-20, given["x"], retain_graph=True)
    (whole,) = torch.autograd.grad(losses.sum(), given["x"])
    torch.testing.assert_close(dx.float() * 2.0**20, whole.float(), rtol=0.02, atol=0.06)
    dw = torch.autograd.grad(
        linear_cross_entropy(**given, reduction="none").sum() * 0.0, given["weight"]
    )[0]
    assert not dw.any()


@pytest.mark.parametrize("layout", ["transposed", "in nan", "every second", "same rows"])
@pytest.mark.parametrize("name", ["x", "weight"])
def test_reads_any_layout(layout, name, device):
    given = inputs(9, 50, 8, device=device)
    given[name] = LAYOUTS[layout](given[name].detach()[None])[0].requires_grad_()
    given["targets"] = torch.stack([given["targets"]] * 2, 1)[:, 0]
    check(given, 4 * 64 * 4)


def test_dw_over_many_chunks_is_as_exact_as_over_one(device):
    """Added up in float32: at most 1.5 times the error of the unchunked product in float16."""
    given = inputs(96, 64, 16, torch.float16, device=device)
    given["x"] = (given["x"].detach() + 1).requires_grad_()

    def dw(function: Any, dtype: torch.dtype = torch.float16, **options: Any) -> Tensor:
        weight = given["weight"].detach().to(dtype).requires_grad_()
        loss = function(given["x"].detach().to(dtype), weight, given["targets"], **options)
        return torch.autograd.grad(loss, weight)[0].double()

    exact = dw(reference_loss, torch.float64)
    plain = (dw(reference_loss) - exact).norm()
    assert (dw(linear_cross_entropy, chunk_bytes=1) - exact).norm() <= 1.5 * plain


@pytest.mark.parametrize("n", [0, 5])
def test_a_batch_without_targets_gives_zero_and_no_gradient(n, device):
    given = inputs(n, 7, 4, device=device)
    given["targets"].fill_(IGNORED)
    loss = linear_cross_entropy(**given)
    loss.backward()
    assert loss.item() == 0
    assert not given["x"].grad.any()
    assert not given["weight"].grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_chooses_the_dtype_of_the_products(dtype, device):
    given = inputs(9, 50, 8, device=device)
    given["weight"] = given["weight"].detach().to(dtype).requires_grad_()
    with torch.autocast(device.type, dtype):
        loss = linear_cross_entropy(**given)
    loss.backward()
    logits = (given["x"].to(dtype) @ given["weight"].T).double()
    exact = torch.nn.functional.cross_entropy(logits, given["targets"])
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)
    assert given["x"].grad.dtype == torch.float32
    assert given["weight"].grad.dtype == dtype


# ---- work and memory


def test_chunks_fit_the_budget_and_are_even():
    row = 50304 * 2
    assert chunk_rows(65536, row, CHUNK_BYTES) == 4096
    assert chunk_rows(12288, row, CHUNK_BYTES) == 4096
    assert chunk_rows(5000, row, CHUNK_BYTES) == 2560  # rather than 4096 and 904
    assert chunk_rows(100, row, CHUNK_BYTES) == 100
    assert chunk_rows(0, row, CHUNK_BYTES) == 1
    assert chunk_rows(100, row, 1) == 1
    for n in (1, 127, 128, 129, 1000, 4097):
        for most in (1, 7, 128, 130, 300, 5000):
            assert 1 <= chunk_rows(n, row, most * row) <= most


@pytest.mark.parametrize("trained", ["", "x", "weight", "x and weight"])
def test_one_product_and_one_more_for_each_gradient(trained, device):
    n, v, c = 20, 100, 8
    given = inputs(n, v, c, device=device)
    for name in ("x", "weight"):
        given[name] = given[name].detach().requires_grad_(name in trained.split())

    def multiply_adds(grad: bool) -> int:
        with (
            patch.object(torch, "mm", wraps=torch.mm) as mm,
            patch.object(torch, "addmm", wraps=torch.addmm) as addmm,
            torch.set_grad_enabled(grad),
        ):
            loss = linear_cross_entropy(**given, chunk_bytes=4 * 128 * 7)
            assert loss.requires_grad == (grad and trained != "")
            if loss.requires_grad:
                loss.backward()
        factors = [call.args[-2:] for call in (*mm.call_args_list, *addmm.call_args_list)]
        return sum(a.numel() * b.shape[1] for a, b in factors)

    assert multiply_adds(True) == n * v * c * (1 + sum(name in trained.split() for name in given))
    assert multiply_adds(False) == n * v * c


def _peak_of_cpu(step: Any) -> int:
    """The most bytes that PyTorch held on the CPU during a step beyond what it held before."""
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
        step()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


@pytest.mark.parametrize("chunks", [1, 4])
def test_peak_memory_is_a_chunk_and_the_gradients(chunks, device):
    n, v, c = 64, 2048, 128
    budget = n * v * 4 // chunks
    given = inputs(n, v, c, device=device)

    def step() -> None:
        linear_cross_entropy(**given, chunk_bytes=budget).backward()

    step()  # whatever is allocated once and for all
    for name in ("x", "weight"):
        given[name].grad = None
    gradients = (n + v) * c * 4
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        peak = torch.cuda.max_memory_allocated() - before
    else:
        # What the interpreter allocates would count as well.
        with patch("kernels.linear_cross_entropy.launch_cross_entropy"):
            peak = _peak_of_cpu(step)
    assert 0.9 * (budget + gradients) <= peak <= 1.1 * (budget + gradients)


# ---- autograd, operators, compilation


@pytest.mark.parametrize("needed", [(True, True), (False, False)])
def test_operator_passes_opcheck(needed, device):
    given = [x.detach() for x in inputs(5, 24, 8, device=device).values()]
    for reduction, weights in (("mean", None), ("none", torch.rand(5, device=device))):
        torch.library.opcheck(
            torch.ops.gpt2_triton.linear_cross_entropy_fwd.default,
            (*given, weights, 24, IGNORED, 0.0, 0.0, reduction, 4 * 32 * 2, *needed),
        )


# ---- what is refused


@pytest.mark.skipif(CUDA, reason="a GPU answers with NaN")
def test_a_target_outside_the_vocabulary_is_named():
    x, weight = torch.randn(3, 4), torch.randn(128, 4)
    with pytest.raises(ValueError, match=r"target 100 is outside the vocabulary \[0, 100\)"):
        linear_cross_entropy(x, weight, torch.tensor([1, 100, 2]), vocab_size=100)


@pytest.mark.parametrize(
    ("message", "change"),
    [
        (r"x \(N, C\) and weight \(V, C\), got \(3, 5\) and \(9, 4\)", {"x": torch.zeros(3, 5)}),
        (r"int64 targets of shape \(3,\)", {"targets": torch.arange(4)}),
        (r"int64 targets of shape \(3,\), got torch.int32", {"targets": torch.arange(3).int()}),
        ("share device and dtype", {"weight": torch.zeros(9, 4).half()}),
        ("float64", {"x": torch.zeros(3, 4).double(), "weight": torch.zeros(9, 4).double()}),
        (r"vocab_size must be in 1\.\.9", {"vocab_size": 10}),
        ("chunk_bytes must be at least 1, got 0", {"chunk_bytes": 0}),
        (r"label_smoothing must be in \[0, 1\), got -1", {"label_smoothing": -1.0}),
    ],
)
def test_refuses_what_it_cannot_take(message, change, device):
    given = {"x": torch.zeros(3, 4), "weight": torch.zeros(9, 4), "targets": torch.arange(3)}
    given |= change
    tensors = [given.pop(name).to(device) for name in ("x", "weight", "targets")]
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(*tensors, **given)


# ---- on a GPU only


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab", [50304, 50257])
def test_cuda_matches_reference_at_full_size(vocab, dtype, device):
    given = inputs(2000, vocab, 768, dtype, device=device)
    given["weight"] = (given["weight"].detach() * 0.03).requires_grad_()
    check(given, chunk_bytes=2 * 50304 * 512)


@pytest.mark.cuda
def test_cuda_peak_memory_at_the_size_of_training(device):
    n, v, c = 65536, 50304, 768
    x = torch.randn(n, c, device=device, dtype=torch.bfloat16, requires_grad=True)
    weight = (0.03 * torch.randn(v, c, device=device)).bfloat16().requires_grad_()
    targets = torch.randint(0, v, (n,), device=device)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    linear_cross_entropy(x, weight, targets).backward()
    peak = torch.cuda.max_memory_allocated() - before
    assert peak <= 1.1 * (CHUNK_BYTES + 4 * v * c) + 2 * (n + v) * c


@pytest.mark.cuda
def test_cuda_never_waits_for_the_device(device):
    given = inputs(64, 4096, 64, torch.bfloat16, device=device)
    check_never_waits(lambda: linear_cross_entropy(**given).backward())
