"""RMSNorm, alone and after the residual addition, against its reference."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels._norm.operators import (
    BWD_THREADS,
    BWD_VALUES,
    FWD_THREADS,
    FWD_VALUES,
    MAX_WIDTH,
    plan_rows,
)
from kernels.rms_norm import add_rms_norm, add_rms_norm_reference, rms_norm, rms_norm_reference
from kernels.testing import Quantity, compare
from tests.kernels.fused import (
    CUDA,
    DTYPES,
    MARKS,
    check_compiles,
    check_double_use,
    check_one_graph_for_every_length,
    every_layout,
    one_multiprocessor,
    randn,
)
from tests.kernels.work_counts import count_work

pytestmark = MARKS
EPS = 1e-6


def inputs(
    *shape: int,
    dtype: torch.dtype = torch.float32,
    residual: torch.dtype | None = None,
    weight: torch.dtype | None = None,
    device: torch.device,
) -> dict[str, Tensor]:
    """Arguments by name, all of which ask for a gradient."""
    made = {"x": randn(*shape, dtype=dtype, device=device)}
    if residual is not None:
        made["residual"] = randn(*shape, dtype=residual, device=device)
    made["weight"] = randn(shape[-1], dtype=weight or dtype, device=device)
    return {name: x.requires_grad_() for name, x in made.items()}


def check(given: dict[str, Tensor], **options: Any) -> dict[str, Quantity]:
    """Compare with the reference.

    dx is a difference of two float32 numbers as large as dy * weight / rms(x), which is nearly zero
    for rows that are nearly parallel to dy * weight: rows of width 1 always.
    """
    x, weight = given["x"].detach().double(), given["weight"].detach().double()
    if "residual" in given:
        x = x + given["residual"].detach().double()
    size = torch.rsqrt(x.square().mean(-1) + EPS).max() * 4 * weight.abs().max() if len(x) else 0
    added = "residual" in given
    return compare(
        add_rms_norm if added else rms_norm,
        add_rms_norm_reference if added else rms_norm_reference,
        given,
        cancelled={"dx": float(size), "dresidual": float(size)},
        **options,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(3, 1), (1, 3), (2, 7, 113), (9, 257), (17, 72), (2, 1000), (7,)], ids=str
)
def test_matches_reference(shape: tuple[int, ...], dtype: torch.dtype, device: Any) -> None:
    check(inputs(*shape, dtype=dtype, device=device))


@pytest.mark.parametrize("width", [768, 1024, 1280, 1600])
def test_matches_reference_at_the_widths_of_gpt2(width: int, device: torch.device) -> None:
    check(inputs(3, width, dtype=torch.float16, residual=torch.float32, device=device))


@pytest.mark.parametrize("width", [3000, 9001])
def test_wide_rows(width: int, device: torch.device) -> None:
    check(inputs(2, width, dtype=torch.float16, device=device))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("residual", DTYPES, ids=str)
def test_add_takes_two_dtypes(
    dtype: torch.dtype, residual: torch.dtype, device: torch.device
) -> None:
    given = inputs(3, 257, dtype=dtype, residual=residual, weight=torch.float32, device=device)
    y, total = add_rms_norm(**given)
    assert (y.dtype, total.dtype) == (dtype, residual)
    check(given)


@pytest.mark.parametrize("asked", DTYPES, ids=str)
def test_y_has_the_dtype_asked_for(asked: torch.dtype, device: torch.device) -> None:
    def reference(x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm_reference(x, weight, dtype=None if x.dtype == torch.float64 else asked)

    given = inputs(3, 100, device=device)
    assert rms_norm(**given, dtype=asked).dtype == asked
    compare(partial(rms_norm, dtype=asked), reference, given)
    y, total = add_rms_norm(given["x"], given["x"].half(), given["weight"], dtype=asked)
    assert (y.dtype, total.dtype) == (asked, torch.float16)


@every_layout
@pytest.mark.parametrize("name", ["x", "residual"])
def test_reads_any_layout(layout: Any, name: str, device: torch.device) -> None:
    given = inputs(2, 5, 20, residual=torch.float32, device=device)
    given[name] = layout(given[name].detach()).requires_grad_()
    check(given)


def test_weight_may_be_a_slice(device: torch.device) -> None:
    weight = randn(40, device=device)[::2].requires_grad_()
    check({"x": randn(3, 20, device=device).requires_grad_(), "weight": weight})


@every_layout
def test_takes_any_upstream_gradient(layout: Any, device: torch.device) -> None:
    given = inputs(2, 5, 20, residual=torch.float32, device=device)
    dense = randn(2, 5, 20, device=device)
    check(given, upstream=[layout(dense), layout(dense.flip(0))])


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 100])
def test_programs_that_walk_over_many_tiles(
    rows: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One multiprocessor: three programs share all tiles of 8 rows."""
    one_multiprocessor(monkeypatch)
    assert plan_rows(300, 4, BWD_VALUES, BWD_THREADS).rows == 8
    check(inputs(rows, 300, residual=torch.float32, device=device))


@pytest.mark.parametrize("used", ["y", "sum"])
def test_an_output_that_is_not_used(used: str, device: torch.device) -> None:
    given = inputs(4, 30, dtype=torch.float16, residual=torch.float32, device=device)
    y, total = add_rms_norm(**given)
    if used == "sum":
        dtotal = torch.randn_like(total)
        dx, dresidual, dweight = torch.autograd.grad(
            total, list(given.values()), dtotal, allow_unused=True
        )
        assert torch.equal(dresidual, dtotal)
        assert torch.equal(dx, dtotal.half())
        assert dweight is None
    else:
        check(given, upstream=[torch.randn_like(y), None])


@pytest.mark.parametrize(
    "scale", [0.0, 1e-20, 1e-4, 1e15], ids=["zero", "tiny", "as small as eps", "huge"]
)
def test_rows_of_any_size(scale: float, device: torch.device) -> None:
    given = inputs(4, 50, device=device)
    given["x"] = (given["x"].detach() * scale).requires_grad_()
    check(given)


def test_float16_near_overflow(device: torch.device) -> None:
    """Squares far beyond float16: statistics are in float32."""
    given = inputs(4, 50, dtype=torch.float16, device=device)
    given["x"] = (given["x"].detach().sign() * 60000).requires_grad_()
    check(given)


def test_rows_do_not_touch(device: torch.device) -> None:
    """A row of NaN spoils itself alone."""
    x, weight = inputs(20, 30, device=device).values()
    before = rms_norm(x, weight)
    with torch.no_grad():
        x[7] = math.nan
    after = rms_norm(x, weight)
    assert after[7].isnan().all()
    assert torch.equal(after[torch.arange(20) != 7], before[torch.arange(20) != 7])


# ---- how rows are cut


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("width", [768, 1024, 1280, 1600])
@pytest.mark.parametrize(
    "lanes", [(FWD_VALUES, FWD_THREADS), (BWD_VALUES, BWD_THREADS)], ids=["forward", "backward"]
)
def test_few_lanes_idle_at_the_widths_of_gpt2(
    width: int, itemsize: int, lanes: tuple[int, int]
) -> None:
    assert sum(plan_rows(width, itemsize, *lanes).widths) <= 1.05 * width


@pytest.mark.parametrize("itemsize", [2, 4])
def test_pieces_cover_every_width(itemsize: int) -> None:
    for width in (*range(1, 1700), 5000, 12345, MAX_WIDTH):
        plan = plan_rows(width, itemsize, BWD_VALUES, BWD_THREADS)
        ends = [start + piece for start, piece in zip(plan.starts, plan.widths, strict=True)]
        assert plan.starts == (0, *ends[:-1])
        assert plan.starts[-1] < width <= ends[-1]
        assert all(n & (n - 1) == 0 for n in (plan.rows, plan.threads, *plan.widths))


# ---- autograd, operators, compilation


@pytest.mark.parametrize(
    "trained", [("x",), ("weight",), ("residual",), ("x", "residual"), ("residual", "weight")]
)
def test_frozen_inputs_get_no_gradient(trained: tuple[str, ...], device: torch.device) -> None:
    given = inputs(5, 30, residual=torch.float32, device=device)
    given = {name: x.detach().requires_grad_(name in trained) for name, x in given.items()}
    assert set(check(given)) == {"out0", "out1", *(f"d{name}" for name in trained)}


@pytest.mark.skipif(CUDA, reason="launches are counted in the interpreter")
@pytest.mark.parametrize("trained", [True, False])
def test_backward_is_two_launches_or_one(trained: bool, device: torch.device) -> None:
    given = inputs(5, 30, device=device)
    given["weight"].requires_grad_(trained)
    y = rms_norm(**given)
    with count_work() as work:
        y.sum().backward()
    assert len(work.launches) == (2 if trained else 1)
    assert work.added == 0


def test_no_graph_without_gradients(device: torch.device) -> None:
    with torch.no_grad():
        assert rms_norm(**inputs(3, 8, device=device)).grad_fn is None


def test_the_graph_can_be_used_twice_but_not_differentiated(device: torch.device) -> None:
    given = inputs(4, 30, residual=torch.float32, device=device)
    check_double_use(add_rms_norm, given)
    del given["residual"]
    check_double_use(rms_norm, given)


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8)], ids=str)
def test_empty_input_gives_zero_weight_gradient(shape: tuple[int, ...], device: Any) -> None:
    x = torch.empty(shape, device=device, requires_grad=True)
    weight = torch.ones(8, device=device, requires_grad=True)
    y, total = add_rms_norm(x, x, weight)
    (y.sum() + total.sum()).backward()
    assert y.shape == total.shape == x.shape
    assert weight.grad is not None
    assert not weight.grad.any()


def test_compiles_without_a_graph_break(device: torch.device) -> None:
    def model(x: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
        y, total = add_rms_norm(2 * x, residual, weight)
        return y + total + rms_norm(total, weight, dtype=torch.float16)

    check_compiles(model, list(inputs(4, 30, residual=torch.float32, device=device).values()))


def test_compiled_code_is_reused_for_other_lengths(device: torch.device) -> None:
    check_one_graph_for_every_length(
        rms_norm, lambda n: list(inputs(n, 24, device=device).values())
    )


@pytest.mark.parametrize("residual", [None, torch.float32, torch.float16])
@pytest.mark.parametrize("centred", [False, True])
def test_operators_pass_opcheck(
    residual: torch.dtype | None, centred: bool, device: torch.device
) -> None:
    ops = torch.ops.gpt2_triton
    x, weight = randn(3, 20, device=device), randn(20, device=device)
    stream = None if residual is None else x.to(residual)
    bias = weight if centred else None
    arguments = (x, stream, weight, bias, EPS, centred, torch.float16)
    torch.library.opcheck(ops.norm_fwd.default, arguments)
    y, total, stats = ops.norm_fwd(*arguments)
    saved, dtotal = (x, None) if stream is None else (total, total)
    for needed in (True, False):
        torch.library.opcheck(
            ops.norm_bwd.default,
            (y, dtotal, saved, weight, stats, centred, torch.float32, needed, centred),
        )


# ---- what is refused


@pytest.mark.parametrize(
    ("message", "make"),
    [
        (r"weight must be \(8,\) .* got \(7,\)", lambda z: (z(3, 8), z(7))),
        (r"C in 1\.\.65536, got shape \(3, 0\)", lambda z: (z(3, 0), z(0))),
        (r"C in 1\.\.65536, got shape \(1, 65537\)", lambda z: (z(1, 65537), z(65537))),
        (r"got shape \(\)", lambda z: (z(), z(1))),
        ("float64", lambda z: (z(3, 8).double(), z(8))),
        ("eps must be positive, got 0", lambda z: (z(3, 8), z(8), 0.0)),
        ("eps must be positive, got nan", lambda z: (z(3, 8), z(8), math.nan)),
    ],
)
def test_refuses_what_it_cannot_take(message: str, make: Any, device: torch.device) -> None:
    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, device=device)

    x, weight, *eps = make(zeros)
    with pytest.raises(ValueError, match=message):
        rms_norm(x, weight, *eps)
    with pytest.raises(ValueError, match=message):
        add_rms_norm(x, x, weight, *eps)


def test_refuses_shapes_and_dtypes_of_the_sum(device: torch.device) -> None:
    x, weight = torch.zeros(3, 8, device=device), torch.zeros(8, device=device)
    with pytest.raises(ValueError, match=r"one shape, got \(3, 8\) and \(1, 8\)"):
        add_rms_norm(x, x[:1], weight)
    with pytest.raises(ValueError, match="float64"):
        rms_norm(x, weight, dtype=torch.float64)


@pytest.mark.skipif(CUDA, reason="bfloat16 is right on a GPU")
@pytest.mark.parametrize("which", ["x", "weight", "y"])
def test_refuses_bfloat16_in_the_interpreter(which: str) -> None:
    x, weight = torch.zeros(3, 8), torch.zeros(8)
    x = x.bfloat16() if which == "x" else x
    weight = weight.bfloat16() if which == "weight" else weight
    with pytest.raises(ValueError, match="interpreter computes bfloat16 wrongly"):
        rms_norm(x, weight, dtype=torch.bfloat16 if which == "y" else None)


def test_refuses_cpu_tensors_without_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernels._common.launch.INTERPRETED", False)
    with pytest.raises(ValueError, match="TRITON_INTERPRET=1"):
        rms_norm(torch.zeros(3, 8), torch.zeros(8))


# ---- on a GPU only


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [768, 1024, 1280, 1600, 5000])
def test_cuda_matches_reference_at_full_size(
    width: int, dtype: torch.dtype, device: torch.device
) -> None:
    check(inputs(8191, width, dtype=dtype, weight=torch.float32, device=device))
    check(inputs(8191, width, dtype=dtype, residual=torch.float32, device=device))


@pytest.mark.cuda
def test_cuda_more_than_2_to_31_elements(device: torch.device) -> None:
    rows = 2**31 // 1600 + 1000
    x = torch.zeros(rows, 1600, dtype=torch.bfloat16, device=device)
    x[-5:] = torch.randn(5, 1600, device=device)
    weight = torch.ones(1600, device=device, requires_grad=True)
    y = rms_norm(x.requires_grad_(), weight)
    dy = torch.zeros_like(y)
    dy[-5:] = 1
    dx, dweight = torch.autograd.grad(y, [x, weight], dy)
    tail = x.detach()[-5:].clone().requires_grad_()
    part = rms_norm(tail, weight)
    want = torch.autograd.grad(part, [tail, weight], torch.ones_like(part))
    torch.testing.assert_close(y[-5:], part, rtol=0, atol=0)
    torch.testing.assert_close(dx[-5:], want[0], rtol=0, atol=0)
    torch.testing.assert_close(dweight, want[1])


@pytest.mark.cuda
def test_cuda_graph_captures_forward_and_backward(device: torch.device) -> None:
    x, residual, weight = inputs(
        300, 768, dtype=torch.bfloat16, residual=torch.float32, device=device
    ).values()

    def step() -> tuple[Tensor, ...]:
        y, total = add_rms_norm(x, residual, weight)
        return torch.autograd.grad(
            [y, total], [x, residual, weight], [torch.ones_like(y), torch.ones_like(total)]
        )

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            expected = step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


@pytest.mark.cuda
@every_layout
def test_cuda_reads_any_layout_in_bfloat16(layout: Any, device: torch.device) -> None:
    given = inputs(2, 50, 768, dtype=torch.bfloat16, device=device)
    given["x"] = layout(given["x"].detach()).requires_grad_()
    check(given, upstream=[layout(randn(2, 50, 768, dtype=torch.bfloat16, device=device))])
