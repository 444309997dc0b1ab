"""The fused head + cross-entropy against its plain form, and what it refuses."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2.loss import linear_cross_entropy
from kernels.testing import compare


def reference(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(x @ weight.T, targets)


SHAPES = [(1, 3, 2), (50, 257, 16), (113, 1000, 33)]  # rows, vocabulary, channels


def _case(n: int, v: int, c: int, dtype: torch.dtype = torch.float32) -> dict[str, object]:
    targets = torch.randint(0, v, (n,))
    targets[1::4] = -100
    return {
        "x": torch.randn(n, c, dtype=dtype, requires_grad=True),
        "weight": torch.randn(v, c, dtype=dtype, requires_grad=True),
        "targets": targets,
    }


SLOW = (pytest.mark.slow, pytest.mark.timeout(3600))
AT_SIZE = (16384, 50257, 768)  # GPT-2 small, and 16 sequences


@pytest.mark.parametrize(
    ("kernel", "dtype", "shape"),
    [
        ("torch", torch.float16, (16384, 64, 8)),
        ("triton", torch.float16, (128, 8192, 8)),
        ("triton", torch.bfloat16, (128, 8192, 8)),
        *(pytest.param("torch", d, AT_SIZE, marks=SLOW) for d in (torch.float16, torch.bfloat16)),
        *(pytest.param("triton", d, AT_SIZE, marks=SLOW) for d in (torch.float16, torch.bfloat16)),
    ],
    ids=str,
)
def test_small_gradients_survive_16_bits(kernel, dtype, shape):
    """They are as exact as plain cross-entropy's, as the loss is scaled before 1/n meets them."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    n, v, c = shape
    x, weight = torch.randn(n, c, device=device), 0.02 * torch.randn(v, c, device=device)
    targets = torch.randint(0, v, (n,), device=device)

    def gradients(loss: Any, x: Tensor, weight: Tensor, targets: Tensor) -> list[Tensor]:
        leaves = [x.requires_grad_(), weight.requires_grad_()]
        with torch.autocast(device, dtype, enabled=x.dtype != torch.float64):
            scaled = 2.0**16 * loss(*leaves, targets)
        return [g.double() / 2**16 for g in torch.autograd.grad(scaled, leaves)]

    parts = [(x, targets)] if n < 1024 else zip(x.split(1024), targets.split(1024), strict=True)
    found = [gradients(reference, x.double(), weight.double(), t) for x, t in parts]
    exact = torch.cat([dx for dx, _ in found]), torch.stack([dw for _, dw in found]).sum(0)
    for of_x in (torch.float32, dtype):
        plain = gradients(reference, x.to(of_x), weight, targets)
        ours = gradients(partial(linear_cross_entropy, kernel=kernel), x.to(of_x), weight, targets)
        for mine, theirs, right in zip(ours, plain, exact, strict=True):
            right = right / len(found)
            assert (mine - right).norm() <= 1.1 * (theirs - right).norm()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("chunk_bytes", [1, 4 * 257 * 7, 2**28])
def test_is_within_the_error_budget_for_every_chunking(shape, chunk_bytes):
    def fused(x, weight, targets):
        return linear_cross_entropy(x, weight, targets, chunk_bytes=chunk_bytes)

    compare(fused, reference, _case(*shape))


def test_blocks_of_rows_cover_every_row(monkeypatch):
    monkeypatch.setattr("gpt2.loss.CACHE_ELEMENTS", 3 * 257)  # 50 rows = 16 blocks of 3, and 2 rows
    compare(linear_cross_entropy, reference, _case(50, 257, 16))


def test_huge_logits_keep_the_loss_finite_and_exact():
    case = _case(20, 100, 8)
    with torch.no_grad():
        case["x"].mul_(300)  # differences of logits far beyond exp's range
    compare(linear_cross_entropy, reference, case)


def test_padded_rows_of_the_vocabulary_take_no_part():
    x, weight = torch.randn(9, 4, requires_grad=True), torch.randn(128, 4, requires_grad=True)
    targets = torch.randint(0, 100, (9,))
    padded = linear_cross_entropy(x, weight, targets, vocab_size=100)
    padded.backward()
    plain = reference(x.detach(), weight.detach()[:100], targets)
    assert padded.item() == pytest.approx(plain.item(), rel=1e-6)
    assert weight.grad is not None
    assert (weight.grad[100:] == 0).all()
    assert (weight.grad[:100] != 0).any()


def test_a_batch_without_targets_gives_zero_and_no_gradient():
    x, weight = torch.randn(5, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    loss = linear_cross_entropy(x, weight, torch.full((5,), -100))
    loss.backward()
    assert loss.item() == 0
    assert not x.grad.any()
    assert not weight.grad.any()


def test_the_loss_is_float32_under_autocast():
    """Rounded to bf16, a loss near 8 would move in steps of 0.03."""
    x, weight = torch.randn(64, 32, requires_grad=True), torch.randn(500, 32, requires_grad=True)
    targets = torch.randint(0, 500, (64,))
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(x, weight, targets)
    loss.backward()
    logits = (x.bfloat16() @ weight.bfloat16().T).double()
    exact = torch.nn.functional.cross_entropy(logits, targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)
    assert x.grad.dtype == weight.grad.dtype == torch.float32


def test_a_second_backward_is_refused():
    case = _case(5, 9, 4)
    loss = linear_cross_entropy(**case)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_target_outside_the_vocabulary_is_named():
    x, weight = torch.randn(3, 4), torch.randn(128, 4)
    with pytest.raises(ValueError, match=r"target 100 is outside the vocabulary \[0, 100\)"):
        linear_cross_entropy(x, weight, torch.tensor([1, 100, 2]), vocab_size=100)


@pytest.mark.parametrize(
    ("x", "targets"), [(torch.randn(3, 5), torch.arange(3)), (torch.randn(3, 4), torch.arange(4))]
)
def test_shapes_that_do_not_fit_are_refused(x, targets):
    with pytest.raises(ValueError, match="expected"):
        linear_cross_entropy(x, torch.randn(9, 4), targets)
