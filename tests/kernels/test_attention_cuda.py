"""Causal attention at the sizes of training, against its reference: what only a GPU can run."""

import pytest
import torch
from torch import Tensor

from kernels.attention import attention, attention_qkvpacked
from tests.kernels.attention import check, qkv
from tests.kernels.fused import DTYPES, capture

pytestmark = pytest.mark.usefixtures("nan_in_empty")


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(4, 1024, 12, 64), (2, 2048, 4, 128), (1, 4096, 2, 64)], ids=str)
def test_cuda_matches_reference_at_full_size(shape, dtype, deterministic, device):
    check(qkv(shape, dtype, device), deterministic=deterministic)


@pytest.mark.cuda
def test_cuda_more_than_2_to_31_scores(device):
    """B * H * T * T > 2^31; a head among many equals the same head alone."""
    inputs = qkv((8, 8192, 6, 64), torch.bfloat16, device)
    o = attention(**inputs, deterministic=False)
    do = torch.randn_like(o)
    grads = torch.autograd.grad(o, list(inputs.values()), do)
    for b, h in ((0, 0), (7, 5)):
        part = {
            name: x.detach()[b : b + 1, :, h : h + 1].requires_grad_() for name, x in inputs.items()
        }
        alone = attention(**part, deterministic=False)
        expected = torch.autograd.grad(
            alone, list(part.values()), do[b : b + 1, :, h : h + 1].contiguous()
        )
        torch.testing.assert_close(o[b : b + 1, :, h : h + 1], alone, rtol=0, atol=0)
        for got, want in zip(grads, expected, strict=True):
            torch.testing.assert_close(got[b : b + 1, :, h : h + 1], want)


@pytest.mark.cuda
def test_cuda_more_than_2_to_31_elements(device):
    shape = (1024, 1024, 33, 64)
    packed = torch.zeros(shape[0], shape[1], 3, *shape[2:], dtype=torch.bfloat16, device=device)
    packed[-1] = torch.randn_like(packed[-1])
    with torch.no_grad():
        o = attention_qkvpacked(packed)
        torch.testing.assert_close(o[-1:], attention_qkvpacked(packed[-1:]), rtol=0, atol=0)


@pytest.mark.cuda
def test_cuda_memory_is_linear_in_length(device):
    def peak(length: int) -> int:
        packed = torch.zeros(
            1, length, 3, 12, 64, dtype=torch.bfloat16, device=device, requires_grad=True
        )
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        attention_qkvpacked(packed, deterministic=False).sum().backward()
        return torch.cuda.max_memory_allocated() - before

    peak(1024)
    assert peak(32768) <= 1.1 * 8 * peak(4096)


@pytest.mark.cuda
def test_cuda_graph_captures_forward_and_backward(device):
    packed = torch.randn(2, 256, 3, 4, 64, device=device).bfloat16().requires_grad_()

    def step() -> Tensor:
        o = attention_qkvpacked(packed, dropout_p=0.1, deterministic=False)
        (gradient,) = torch.autograd.grad(o, packed, torch.ones_like(o))
        return gradient

    graph, captured, _ = capture(step)
    graph.replay()
    first = captured.clone()
    graph.replay()
    assert first.isfinite().all()
    assert not torch.equal(first, captured), "each replay must draw a new dropout mask"
