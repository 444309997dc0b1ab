"""Bytes that the fused kernels move, counted in the interpreter, against the least possible.

The least is one read of each input and one write of each output that is as large as the data.
Vectors that all rows share count once, since the cache serves every further program; how often they
are read is asserted too.
"""

import pytest
import torch
from torch import Tensor

from kernels._common.launch import INTERPRETED
from kernels._norm.operators import (
    BWD_ELEMENTS,
    BWD_PROGRAMS,
    BWD_THREADS,
    BWD_VALUES,
    plan_rows,
)
from kernels.cross_entropy import cross_entropy
from kernels.gelu import gelu_tanh
from kernels.layer_norm import add_layer_norm, layer_norm
from kernels.linear_cross_entropy import linear_cross_entropy
from kernels.rms_norm import add_rms_norm, rms_norm
from kernels.swiglu import swiglu, swiglu_packed
from tests.kernels.fused import MARKS, one_multiprocessor
from tests.kernels.work_counts import Work, count_work

pytestmark = [*MARKS, pytest.mark.skipif(not INTERPRETED, reason="counts in the interpreter")]
HALF, SINGLE = torch.float16, torch.float32
ROWS = 288
VECTORS = ["weight_ptr", "bias_ptr"]


def size(*tensors: Tensor) -> int:
    return sum(x.nbytes for x in tensors)


def moved(work: Work, *shared: Tensor) -> int:
    """Bytes moved, with the vectors that all rows share counted once."""
    again = sum(launch.loaded[name] for launch in work.launches for name in VECTORS)
    return work.loaded + work.stored + work.added - again + size(*shared)


def count_both(function, tensors, vectors=()):
    """Return the work of a function and of its backward, outputs, their gradients, gradients."""
    with count_work() as forward:
        result = function(*tensors, *vectors)
    outputs = list(result) if isinstance(result, tuple) else [result]
    upstream = [torch.randn_like(out) for out in outputs]
    with count_work() as backward:
        grads = torch.autograd.grad(outputs, [*tensors, *vectors], upstream)
    return forward, backward, outputs, upstream, list(grads)


def randn(*shape: int, dtype: torch.dtype = HALF) -> Tensor:
    return torch.randn(shape).to(dtype).requires_grad_()


@pytest.fixture
def _few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many rows per program as in training: 96 here, 165 at 65,536 rows on an H100."""
    one_multiprocessor(monkeypatch)


@pytest.mark.usefixtures("_few_programs")
@pytest.mark.parametrize(("width", "centred"), [(768, False), (768, True), (1600, True)], ids=str)
def test_norms_move_every_byte_once(width, centred):
    x, vectors = randn(ROWS, width), [randn(width, dtype=SINGLE) for _ in range(1 + centred)]
    norm = layer_norm if centred else rms_norm
    forward, backward, y, dy, grads = count_both(norm, [x], vectors)
    weight = vectors[0]
    assert moved(forward, *vectors) <= 1.05 * size(x, *y, *vectors)
    (launch,) = forward.launches
    assert launch.loaded["weight_ptr"] == launch.programs * size(weight)
    assert len(backward.launches) == 2
    assert moved(backward, weight) <= 1.05 * size(x, *dy, weight, *grads)
    rows = plan_rows(width, HALF.itemsize, BWD_VALUES, BWD_THREADS).rows  # each loads the weight
    programs = min(BWD_PROGRAMS, BWD_ELEMENTS // (rows * width))
    assert backward.launches[0].programs == programs
    assert backward.launches[0].loaded["weight_ptr"] == programs * rows * size(weight)


@pytest.mark.usefixtures("_few_programs")
@pytest.mark.parametrize("stream", [HALF, SINGLE], ids=str)
@pytest.mark.parametrize("centred", [False, True], ids=["add_rms_norm", "add_layer_norm"])
def test_residual_addition_costs_no_pass_of_its_own(centred, stream):
    x, residual = randn(ROWS, 768), randn(ROWS, 768, dtype=stream)
    vectors = [randn(768, dtype=SINGLE) for _ in range(1 + centred)]
    norm = add_layer_norm if centred else add_rms_norm
    forward, backward, (y, total), upstream, grads = count_both(norm, [x, residual], vectors)
    assert moved(forward, *vectors) <= 1.05 * size(x, residual, y, total, *vectors)
    # One gradient serves both streams when they share a dtype.
    written = grads[1:] if stream == HALF else grads
    assert moved(backward, vectors[0]) <= 1.05 * size(total, *upstream, vectors[0], *written)


@pytest.mark.usefixtures("_few_programs")
@pytest.mark.parametrize("biased", [False, True])
def test_gelu_moves_every_byte_once(biased):
    x = randn(3 * ROWS, 256)
    shared = [randn(256, dtype=SINGLE)] if biased else []
    forward, backward, y, dy, grads = count_both(gelu_tanh, [x], shared)
    assert moved(forward, *shared) <= 1.05 * size(x, *y, *shared)
    assert moved(backward, *shared) <= 1.05 * size(x, *dy, *grads, *shared)


@pytest.mark.parametrize("packed", [False, True])
def test_swiglu_moves_every_byte_once(packed):
    given = [randn(64, 704)] if packed else [randn(64, 352), randn(64, 352)]
    forward, backward, y, dy, grads = count_both(swiglu_packed if packed else swiglu, given)
    assert moved(forward) == size(*y, *given)
    assert moved(backward) == size(*dy, *given, *grads)


@pytest.mark.parametrize("need_grad", [True, False])
@pytest.mark.parametrize("inplace", [True, False])
def test_cross_entropy_reads_once_from_memory_and_once_from_the_cache(need_grad, inplace):
    logits, targets = randn(8, 50304).detach(), torch.arange(8)
    targets[3] = -100
    with count_work() as work:
        cross_entropy(logits.requires_grad_(need_grad), targets, vocab_size=50257, inplace=inplace)
    (launch,) = work.launches
    counted = size(logits) * 7 // 8
    assert launch.loaded["logits_ptr"] <= 1.001 * counted * (2 if need_grad else 1)
    # A loss per row, and the gradient of its target for a second time.
    assert launch.stored.total() <= (size(logits) if need_grad else 0) + 6 * len(logits)
    assert launch.loaded.total() - launch.loaded["logits_ptr"] <= 16 * len(logits)
    assert launch.programs == len(logits)


def test_a_gradient_of_one_moves_nothing_in_the_backward():
    logits = randn(4, 5000, dtype=SINGLE)
    for factor, passes in ((1.0, 0), (2.0, 2)):
        loss = factor * cross_entropy(logits, torch.arange(4))
        with count_work() as work:
            loss.backward()
        (launch,) = work.launches
        assert work.stored == passes // 2 * size(logits)
        assert work.loaded <= passes // 2 * size(logits) + 4 * launch.programs


def test_the_head_turns_each_chunk_into_its_gradient_in_place():
    x, weight, targets = randn(12, 8, dtype=SINGLE), randn(5000, 8, dtype=SINGLE), torch.arange(12)
    logits = 12 * 5024 * 4  # rows begin at multiples of 128 bytes
    with count_work() as trained:
        linear_cross_entropy(x, weight, targets, chunk_bytes=5 * 5024 * 4).backward()
    assert [launch.programs for launch in trained.launches] == [5, 5, 2]
    assert trained.stored <= 1.01 * logits
    assert trained.loaded <= 2.01 * logits
    with count_work() as evaluated, torch.no_grad():
        linear_cross_entropy(x, weight, targets)
    assert evaluated.stored == 4 * 12
    assert evaluated.loaded <= 1.01 * logits
