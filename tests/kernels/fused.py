"""What the tests of the fused kernels share: dtypes, data, layouts, compilation."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

CUDA = torch.cuda.is_available()
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Rows past the end are computed and stored nowhere; NumPy warns of what it finds there.
MARKS = [
    pytest.mark.usefixtures("nan_in_empty"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter"),
]


def randn(*shape: int, dtype: torch.dtype = torch.float32, device: torch.device) -> Tensor:
    return torch.randn(shape, device=device).to(dtype)


def one_multiprocessor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few programs, so that each of them walks over many tiles of few rows."""
    monkeypatch.setattr("kernels._common.launch._multiprocessors", lambda _: 1)


def _contiguous(x: Tensor) -> Tensor:
    return x


def _transposed(x: Tensor) -> Tensor:
    """The last two axes swapped in memory: no row has neighbouring elements."""
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)


def _time_first(x: Tensor) -> Tensor:
    """The first two axes swapped in memory: two strides lead from row to row."""
    return x.transpose(0, 1).contiguous().transpose(0, 1)


def _in_nan(x: Tensor) -> Tensor:
    """A slice of longer rows, NaN elsewhere, at an odd address: one stride from row to row."""
    b, t, c = x.shape
    room = x.new_full((b + 1, t, c + 7), math.nan)
    view = room[1:, :, 3 : c + 3]
    view.copy_(x)
    return view


def _every_second(x: Tensor) -> Tensor:
    return torch.stack([x, torch.full_like(x, math.nan)], -1).flatten(-2)[..., ::2]


def _same_rows(x: Tensor) -> Tensor:
    """One row for all: stride 0."""
    return x[:1, :1].expand(x.shape)


def _one_number(x: Tensor) -> Tensor:
    """What `sum().backward()` sends back: every stride 0."""
    return x.new_ones(()).expand(x.shape)


LAYOUTS = {
    layout.__name__[1:].replace("_", " "): layout
    for layout in (
        _contiguous, _transposed, _time_first, _in_nan, _every_second, _same_rows, _one_number,
    )
}  # fmt: skip
"""Name -> function that lays a (B, T, C) tensor out in memory."""

every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())


def check_double_use(function, inputs, *, refused=False):
    """A second backward gives the same bits or is refused, inputs stay, a double one is refused."""
    leaves = [x for x in inputs.values() if isinstance(x, Tensor) and x.requires_grad]
    copies = [x.detach().clone() for x in leaves]
    outputs = function(**inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    upstream = [torch.randn_like(out) for out in outputs]
    first = torch.autograd.grad(outputs, leaves, upstream, retain_graph=True)
    if refused:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(outputs, leaves, upstream)
    else:
        second = torch.autograd.grad(outputs, leaves, upstream)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(x, copy) for x, copy in zip(leaves, copies, strict=True))
    out = function(**inputs)
    out = out[0] if isinstance(out, tuple) else out
    upstream = torch.ones_like(out).requires_grad_()
    (gradient,) = torch.autograd.grad(out, leaves[:1], upstream, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def check_never_waits(step: Callable[[], None]) -> None:
    """A step on a GPU never waits for the device; its first call compiles the kernels."""
    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def capture(step: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any, Any]:
    """Run a step, then capture it: the CUDA graph, the results captured, and those of the run."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            result = step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    return graph, captured, result


def check_tail(function: Callable[..., Tensor], x: Tensor, rows: int, *vectors: Tensor) -> None:
    """The last rows of a tensor that is zero before them come out as they do alone.

    So do the gradients of the vectors, which rows of zeros add nothing to.
    """
    x[-rows:] = torch.randn_like(x[-rows:])
    tail = x[-rows:].clone().requires_grad_()
    y, part = function(x.requires_grad_()), function(tail)
    dx, *sums = torch.autograd.grad(y, [x, *vectors], y.detach())
    torch.testing.assert_close(y[-rows:], part, rtol=0, atol=0)
    want, *few = torch.autograd.grad(part, [tail, *vectors], part.detach())
    torch.testing.assert_close(dx[-rows:], want, rtol=0, atol=0)
    torch.testing.assert_close(sums, few)


def check_compiles(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
    """`torch.compile(fullgraph=True)` gives eager mode's values and gradients, these twice."""
    leaves = [x for x in inputs if x.requires_grad]
    torch.compiler.reset()  # what other cases compiled counts towards PyTorch's limit
    torch.manual_seed(3)  # of dropout
    expected = function(*inputs)
    upstream = torch.randn_like(expected)
    want = torch.autograd.grad(expected, leaves, upstream)
    torch.manual_seed(3)
    got = torch.compile(function, fullgraph=True, backend="aot_eager")(*inputs)
    torch.testing.assert_close(got, expected)
    for retain_graph in (True, False):
        gradients = torch.autograd.grad(got, leaves, upstream, retain_graph=retain_graph)
        torch.testing.assert_close(gradients, want)
