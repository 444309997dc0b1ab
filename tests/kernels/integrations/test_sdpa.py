"""Stock SDPA calls run on our kernels while they are activated, and on PyTorch's afterwards."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

import kernels.integrations.sdpa as hook
from kernels._common.launch import INTERPRETED
from kernels.attention import attention
from kernels.testing import compare
from tests.kernels.work_counts import count_work

DTYPE = torch.float32 if INTERPRETED else torch.bfloat16


@pytest.fixture
def activated() -> Iterator[None]:
    hook.register_flash_attention()
    torch.nn.attention.activate_flash_attention_impl("triton")
    yield
    torch.nn.attention.restore_flash_attention_impl()


def flash(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return scaled_dot_product_attention(query, key, value, **options)


def math_attention(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return scaled_dot_product_attention(query, key, value, **options)


def inputs(device: torch.device, *, contiguous: bool) -> dict[str, Tensor]:
    def one() -> Tensor:
        x = torch.randn(2, 70, 3, 32, device=device, dtype=DTYPE).transpose(1, 2)
        return (x.contiguous() if contiguous else x).requires_grad_()

    return {name: one() for name in ("query", "key", "value")}


# PyTorch warns once that its own kernel is overridden, which is the point.
pytestmark = pytest.mark.filterwarnings("ignore:Warning only once for all operators")


@pytest.mark.usefixtures("activated")
@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_a_stock_call_matches_plain_attention(contiguous, scale, device):
    tensors = inputs(device, contiguous=contiguous)
    compare(
        lambda **x: flash(**x, is_causal=True, scale=scale),
        lambda **x: math_attention(**x, is_causal=True, scale=scale),
        tensors,
    )
    out = flash(**tensors, is_causal=True)
    assert out.stride() == tensors["query"].stride()


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("entry", ["cpu", "cuda"])
def test_outputs_have_the_layouts_that_pytorch_promises(entry, contiguous, device):
    """By its meta functions, which compiled code relies on. The CUDA entry is called directly."""
    aten, op = torch.ops.aten, "_scaled_dot_product_flash_attention"
    ours = [hook._sdpa_cuda, hook._sdpa_cuda_backward]
    promised = [getattr(aten, op), getattr(aten, f"{op}_backward")]
    lengths: tuple[Any, ...] = (None, None, 70, 70)
    if entry == "cpu":
        ours, lengths = [hook._sdpa_cpu, hook._backward], ()
        promised = [getattr(aten, f"{op}_for_cpu"), getattr(aten, f"{op}_for_cpu_backward")]
    qkv = [x.detach() for x in inputs(device, contiguous=contiguous).values()]
    layouts = []
    for (forward, backward), tensors in (ours, qkv), (promised, [x.to("meta") for x in qkv]):
        outputs = forward(*tensors, 0.0, True)
        seed = outputs[6:8] if entry == "cuda" else ()
        grads = backward(outputs[0], *tensors, *outputs[:2], *lengths, 0.0, True, *seed)
        layouts.append(
            [
                (x.shape, x.stride(), x.dtype) if isinstance(x, Tensor) else x
                for x in (*outputs, *grads)
            ]
        )
    assert layouts[0] == layouts[1]


@pytest.mark.usefixtures("activated")
def test_compiled_code_runs_our_kernels(device: torch.device) -> None:
    tensors = inputs(device, contiguous=True)
    with count_work() as work:
        compare(
            torch.compile(lambda **x: flash(**x, is_causal=True)),
            lambda **x: math_attention(**x, is_causal=True),
            tensors,
        )
    assert work.launches or not INTERPRETED


@pytest.mark.skipif(not INTERPRETED, reason="launches are counted in the interpreter")
def test_our_kernels_run_while_activated_and_only_then(device: torch.device) -> None:
    tensors = inputs(device, contiguous=True)
    hook.register_flash_attention()
    for active in (True, False):
        if active:
            torch.nn.attention.activate_flash_attention_impl("triton")
        with count_work() as work:
            flash(**tensors, is_causal=True).sum().backward()
        assert bool(work.launches) == active
        if active:
            torch.nn.attention.restore_flash_attention_impl()


@pytest.mark.usefixtures("activated")
def test_refuses_what_is_not_causal(device: torch.device) -> None:
    with pytest.raises(ValueError, match="pass is_causal=True, or undo with"):
        flash(**inputs(device, contiguous=True))


def test_the_cuda_entry_draws_dropout_once_for_both_directions(device: torch.device) -> None:
    """Called directly, since no CPU call takes it: the seed travels in SDPA's own slot."""
    query, key, value = (x.detach() for x in inputs(device, contiguous=True).values())
    out, lse, _, _, _, _, rng_state, unused, _ = hook._sdpa_cuda(query, key, value, 0.5, True)
    assert rng_state.dtype == torch.uint64
    seed = rng_state.view(torch.int64)[:1]
    leaves = [x.transpose(1, 2).requires_grad_() for x in (query, key, value)]
    expected = attention(*leaves, dropout_p=0.5, dropout_seed=seed)
    torch.testing.assert_close(out, expected.transpose(1, 2), rtol=0, atol=0)
    do = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, leaves, do)
    got = hook._sdpa_cuda_backward(
        do.transpose(1, 2), query, key, value, out, lse,
        None, None, 70, 70, 0.5, True, rng_state, unused,
    )  # fmt: skip
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b.transpose(1, 2))
