"""RMSNorm and LayerNorm, alone and after the residual addition, against their references."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import layer_norm, rms_norm
from kernels._norm import operators
from kernels._norm.operators import plan_rows
from kernels.testing import Quantity, compare
from tests.kernels import fused
from tests.kernels.fused import CUDA, DTYPES, MARKS, every_layout, randn
from tests.kernels.work_counts import count_work

pytestmark = MARKS
HALF, SINGLE = torch.float16, torch.float32
MODULES = {"rms_norm": rms_norm, "layer_norm": layer_norm}
EPS = {"rms_norm": 1e-6, "layer_norm": 1e-5}
FORWARD = operators.FWD_VALUES, operators.FWD_THREADS
BACKWARD = operators.BWD_VALUES, operators.BWD_THREADS
each_norm = pytest.mark.parametrize("op", MODULES)


def function(op: str, name: str = "{}") -> Any:
    """The function of a norm's module, e.g. `add_{}_reference`."""
    return getattr(MODULES[op], name.format(op))


def inputs(op, *shape, dtype=SINGLE, residual=None, vectors=None, bias=True, device):
    """Arguments by name, all of which ask for a gradient; the bias of LayerNorm may be None."""
    made = {"x": randn(*shape, dtype=dtype, device=device)}
    if residual is not None:
        made["residual"] = randn(*shape, dtype=residual, device=device)
    names = ["weight", "bias"] if op == "layer_norm" and bias else ["weight"]
    made |= {name: randn(shape[-1], dtype=vectors or dtype, device=device) for name in names}
    given: dict[str, Any] = {name: x.requires_grad_() for name, x in made.items()}
    return given if bias or op == "rms_norm" else given | {"bias": None}


def check(op: str, given: dict[str, Any], **options: Any) -> dict[str, Quantity]:
    """Compare with the reference.

    dx is a difference of float32 numbers as large as dy * weight / std(x), which cancels in short
    rows: always where the width is 1, or 2 in LayerNorm. And x - mean has the rounding of the mean.
    """
    x, weight = given["x"].detach().double(), given["weight"].detach().double()
    added = "residual" in given
    if added:
        x = x + given["residual"].detach().double()
    variance = x.square().mean(-1) if op == "rms_norm" else x.var(-1, correction=0)
    rstd = torch.rsqrt(variance + EPS[op]).max()
    off = 0.0
    if op == "layer_norm":
        off = float((x.mean(-1).abs() * rstd).max() * weight.abs().max())
    size = float(4 * rstd * weight.abs().max()) * (1 + off)
    cancelled = {"dx": size, "dresidual": size}
    cancelled |= {"dweight": 4 * off * len(x), "out0" if added else "out": off}
    form = "add_{}" if added else "{}"
    kernel, reference = function(op, form), function(op, f"{form}_reference")
    return compare(kernel, reference, given, cancelled=cancelled, **options)


@pytest.mark.parametrize(
    ("op", "bias"), [("rms_norm", False), ("layer_norm", True), ("layer_norm", False)]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(3, 1), (3, 2), (1, 3), (2, 7, 113), (9, 257), (17, 72), (2, 1000), (7,)], ids=str
)
def test_matches_reference(op, bias, shape, dtype, device):
    check(op, inputs(op, *shape, dtype=dtype, bias=bias, device=device))


@each_norm
@pytest.mark.parametrize("width", [768, 1024, 1280, 1600])
def test_matches_reference_at_the_widths_of_gpt2(op, width, device):
    given = inputs(op, 3, width, dtype=HALF, residual=SINGLE, vectors=SINGLE, device=device)
    check(op, given)


@pytest.mark.parametrize("width", [3000, 9001])
def test_wide_rows(width, device):
    check("rms_norm", inputs("rms_norm", 1, width, dtype=HALF, device=device))


@each_norm
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("residual", DTYPES, ids=str)
def test_add_takes_two_dtypes(op, dtype, residual, device):
    given = inputs(op, 3, 257, dtype=dtype, residual=residual, vectors=SINGLE, device=device)
    y, total = function(op, "add_{}")(**given)
    assert (y.dtype, total.dtype) == (dtype, residual)
    check(op, given)


@each_norm
@pytest.mark.parametrize("asked", DTYPES, ids=str)
def test_y_has_the_dtype_asked_for(op, asked, device):
    def reference(x: Tensor, **vectors: Tensor) -> Tensor:
        dtype = None if x.dtype == torch.float64 else asked
        return function(op, "{}_reference")(x, **vectors, dtype=dtype)

    given = inputs(op, 3, 100, device=device)
    assert function(op)(**given, dtype=asked).dtype == asked
    compare(partial(function(op), dtype=asked), reference, given)
    given["residual"] = given["x"].half()
    y, total = function(op, "add_{}")(**given, dtype=asked)
    assert (y.dtype, total.dtype) == (asked, HALF)


@every_layout
@pytest.mark.parametrize(
    ("op", "name"),
    [("rms_norm", name) for name in ("x", "residual", "upstream")] + [("layer_norm", "x")],
)
def test_reads_any_layout(layout, op, name, device):
    given = inputs(op, 2, 5, 20, residual=SINGLE, device=device)
    dense = randn(2, 5, 20, device=device)
    upstream = [dense, dense.flip(0)]
    if name == "upstream":
        upstream = [layout(dy) for dy in upstream]
    else:
        given[name] = layout(given[name].detach()).requires_grad_()
    check(op, given, upstream=upstream)


def test_weight_may_be_a_slice(device):
    weight = randn(40, device=device)[::2].requires_grad_()
    check("rms_norm", {"x": randn(3, 20, device=device).requires_grad_(), "weight": weight})


@each_norm
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 100])
def test_programs_that_walk_over_many_tiles(op, rows, device, monkeypatch):
    """One multiprocessor: three programs share all tiles of 8 rows."""
    fused.one_multiprocessor(monkeypatch)
    assert plan_rows(300, 4, *BACKWARD).rows == 8
    check(op, inputs(op, rows, 300, residual=SINGLE, device=device))


@pytest.mark.parametrize("used", ["y", "sum"])
def test_an_output_that_is_not_used(used, device):
    given = inputs("rms_norm", 4, 30, dtype=HALF, residual=SINGLE, device=device)
    y, total = rms_norm.add_rms_norm(**given)
    if used == "sum":
        dtotal = torch.randn_like(total)
        total.backward(dtotal)
        assert torch.equal(given["residual"].grad, dtotal)
        assert torch.equal(given["x"].grad, dtotal.half())
        assert given["weight"].grad is None
    else:
        check("rms_norm", given, upstream=[torch.randn_like(y), None])


@pytest.mark.parametrize(
    "scale", [0.0, 1e-20, 1e-4, 1e15], ids=["zero", "tiny", "as small as eps", "huge"]
)
def test_rows_of_any_size(scale, device):
    given = inputs("rms_norm", 4, 50, device=device)
    given["x"] = (given["x"].detach() * scale).requires_grad_()
    check("rms_norm", given)


def test_float16_near_overflow(device):
    """Squares far beyond float16: statistics are in float32."""
    given = inputs("rms_norm", 4, 50, dtype=HALF, device=device)
    given["x"] = (given["x"].detach().sign() * 60000).requires_grad_()
    check("rms_norm", given)


@pytest.mark.parametrize("mean", [100.0, 1e4])
def test_a_large_mean_costs_no_more_than_in_pytorch(mean, device):
    """The variance is that about the mean, not mean(x^2) - mean(x)^2, also past a row's end."""
    given = inputs("layer_norm", 4, 50, device=device)
    given["x"] = (given["x"].detach() + mean).requires_grad_()
    check("layer_norm", given)


def test_constant_rows_give_the_bias(device):
    x, bias = torch.full((3, 40), 7.0, device=device), randn(40, device=device)
    y = layer_norm.layer_norm(x, torch.ones(40, device=device), bias)
    torch.testing.assert_close(y, bias.expand(3, 40), rtol=0, atol=1e-3)


# ---- how rows are cut


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("lanes", [FORWARD, BACKWARD], ids=["forward", "backward"])
def test_few_lanes_idle_at_the_widths_of_gpt2(itemsize, lanes):
    for width in (768, 1024, 1280, 1600):
        assert sum(plan_rows(width, itemsize, *lanes).widths) <= 1.05 * width


@pytest.mark.parametrize("itemsize", [2, 4])
def test_pieces_cover_every_width(itemsize):
    for width in (*range(1, 1700), 5000, 12345, operators.MAX_WIDTH):
        plan = plan_rows(width, itemsize, *BACKWARD)
        ends = [start + piece for start, piece in zip(plan.starts, plan.widths, strict=True)]
        assert plan.starts == (0, *ends[:-1])
        assert plan.starts[-1] < width <= ends[-1]
        assert all(n & (n - 1) == 0 for n in (plan.rows, plan.threads, *plan.widths))


# ---- autograd, operators, compilation


@pytest.mark.skipif(CUDA, reason="launches are counted in the interpreter")
def test_a_frozen_weight_costs_no_sums(device):
    given = inputs("rms_norm", 5, 30, device=device)
    given["weight"].requires_grad_(False)
    y = rms_norm.rms_norm(**given)
    with count_work() as work:
        y.sum().backward()
    assert len(work.launches) == 1


@each_norm
@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8)], ids=str)
def test_empty_input_gives_zero_gradients_of_the_vectors(op, shape, device):
    x = torch.empty(shape, device=device, requires_grad=True)
    weight, *bias = (torch.ones(8, device=device, requires_grad=True) for _ in range(2))
    vectors = [weight, *bias] if op == "layer_norm" else [weight]
    y, total = function(op, "add_{}")(x, x, *vectors)
    (y.sum() + total.sum()).backward()
    assert y.shape == total.shape == x.shape
    assert all(vector.grad is not None and not vector.grad.any() for vector in vectors)


@pytest.mark.parametrize(
    ("residual", "centred"), [(None, True), (SINGLE, False), (HALF, True)], ids=str
)
def test_operators_pass_opcheck(residual, centred, device):
    ops = torch.ops.gpt2_triton
    x, weight = randn(3, 20, device=device), randn(20, device=device)
    stream = None if residual is None else x.to(residual)
    bias = weight if centred else None
    arguments = (x, stream, weight, bias, 1e-6, centred, HALF)
    torch.library.opcheck(ops.norm_fwd.default, arguments)
    y, total, stats = ops.norm_fwd(*arguments)
    saved, dtotal = (x, None) if stream is None else (total, total)
    for needed in (True, False):
        arguments = (y, dtotal, saved, weight, stats, centred, SINGLE, needed, centred)
        torch.library.opcheck(ops.norm_bwd.default, arguments)


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
@each_norm
def test_refuses_what_it_cannot_take(op, message, make, device):
    x, weight, *eps = make(lambda *shape: torch.zeros(shape, device=device))
    vectors = [weight] if op == "rms_norm" else [weight, None]
    with pytest.raises(ValueError, match=f"^{op}: .*{message}"):
        function(op)(x, *vectors, *eps)
    with pytest.raises(ValueError, match=f"^add_{op}: .*{message}"):
        function(op, "add_{}")(x, x, *vectors, *eps)


@pytest.mark.parametrize(
    ("message", "bias"),
    [
        (r"bias must be \(8,\) torch.float32 .* got \(7,\)", torch.zeros(7)),
        (r"bias must be .* got \(8,\) torch.float16", torch.zeros(8).half()),
        ("float64", torch.zeros(8).double()),
    ],
)
def test_refuses_a_bias_that_it_cannot_take(message, bias, device):
    x, weight = torch.zeros(3, 8, device=device), torch.zeros(8, device=device)
    with pytest.raises(ValueError, match=message):
        layer_norm.layer_norm(x, weight, bias.to(device))
    with pytest.raises(ValueError, match=message):
        layer_norm.add_layer_norm(x, x, weight, bias.to(device))


def test_refuses_shapes_and_dtypes_of_the_sum(device):
    x, weight = torch.zeros(3, 8, device=device), torch.zeros(8, device=device)
    with pytest.raises(ValueError, match=r"one shape, got \(3, 8\) and \(1, 8\)"):
        rms_norm.add_rms_norm(x, x[:1], weight)
    with pytest.raises(ValueError, match="float64"):
        rms_norm.rms_norm(x, weight, dtype=torch.float64)


# ---- on a GPU only


@pytest.mark.cuda
@each_norm
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [768, 1024, 1280, 1600, 5000])
def test_cuda_matches_reference_at_full_size(op, width, dtype, device):
    for residual in (None, SINGLE):
        given = inputs(
            op, 8191, width, dtype=dtype, residual=residual, vectors=SINGLE, device=device
        )
        check(op, given)


@pytest.mark.cuda
def test_cuda_more_than_2_to_31_elements(device):
    x = torch.zeros(2**31 // 1600 + 1000, 1600, dtype=torch.bfloat16, device=device)
    weight = torch.ones(1600, device=device, requires_grad=True)
    fused.check_tail(lambda x: rms_norm.rms_norm(x, weight), x, 5, weight)


@pytest.mark.cuda
def test_cuda_graph_captures_forward_and_backward(device):
    given = inputs("rms_norm", 300, 768, dtype=torch.bfloat16, residual=SINGLE, device=device)

    def step() -> tuple[Tensor, ...]:
        y, total = rms_norm.add_rms_norm(**given)
        upstream = [torch.ones_like(y), torch.ones_like(total)]
        return torch.autograd.grad([y, total], list(given.values()), upstream)

    graph, captured, expected = fused.capture(step)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


@pytest.mark.cuda
@every_layout
def test_cuda_reads_any_layout_in_bfloat16(layout, device):
    given = inputs("rms_norm", 2, 50, 768, dtype=torch.bfloat16, device=device)
    given["x"] = layout(given["x"].detach()).requires_grad_()
    dy = layout(randn(2, 50, 768, dtype=torch.bfloat16, device=device))
    check("rms_norm", given, upstream=[dy])
