"""Causal attention against its reference: shapes, layouts and options, forward and backward.

Without a GPU the kernels run in `kernels.interpreter`. Tiles are made small where it is the tiling
that is tested.
"""

import math
import unittest.mock
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

import kernels._attention.operators
from kernels._attention.operators import dropout_mask
from kernels._attention.tiles import Tile, Tiles
from kernels._common import launch
from kernels._common.launch import INTERPRETED
from kernels.attention import attention, attention_qkvpacked, attention_reference
from kernels.documents import document_bounds
from kernels.testing import compare
from tests.kernels.fused import DTYPES, MARKS, check_compiles, check_double_use, randn
from tests.kernels.work_counts import count_work

pytestmark = MARKS


def use_tiles(monkeypatch: pytest.MonkeyPatch, block_m: int, block_n: int) -> None:
    tile = Tile(block_m, block_n, 4, 2)
    monkeypatch.setattr(
        kernels._attention.operators, "choose_tiles", lambda *_: Tiles(tile, tile, tile)
    )


def bounds(batch: int, length: int, begins: list[int], device) -> Tensor:
    """Documents that begin at these positions; in each further row one later."""
    first = torch.zeros(batch, length, dtype=torch.bool, device=device)
    for row in range(batch):
        first[row, [begin + row for begin in begins if begin + row < length]] = True
    return document_bounds(first)


def qkv(shape, dtype, device, grad=True):
    return {
        name: randn(*shape, dtype=dtype, device=device).requires_grad_(grad)
        for name in ("q", "k", "v")
    }


def reference(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    return attention_reference(q, k, v, **options)[0]


def check(inputs, *, deterministic, do=None, keep=None, dropout_seed=None, **options):
    """Compare `attention` with its reference on these inputs and options.

    The kernels form dS = P * (dP - delta) from two float32 sums, which are equal where a row sees
    one key; PyTorch's softmax backward subtracts in another order. P = exp(S - L), where the
    backward computes S again as k q^T: whether its sums come out as those of q k^T, to the bit,
    depends on the machine's matrix product, so P has one rounding more at the size of S than
    PyTorch's, which keeps its P.
    """
    do = torch.randn_like(inputs["q"]) if do is None else do
    q, k, v = (x.detach().double() for x in inputs.values())
    scale = q.shape[-1] ** -0.5 if options.get("scale") is None else options["scale"]
    largest_logit = float(scale * torch.einsum("bihd,bjhd->bhij", q, k).abs().max())
    ds = 2 * (1 + largest_logit) * torch.einsum("bihd,bjhd->bhij", do.double(), v).abs().max()
    ds *= scale / (1 - options.get("dropout_p", 0.0))
    return compare(
        partial(attention, deterministic=deterministic, dropout_seed=dropout_seed, **options),
        partial(reference, keep=keep, **options),
        inputs,
        upstream=[do],
        cancelled={
            "dq": float(ds * k.abs().max()),
            "dk": float(ds * q.abs().max()),
            "dv": largest_logit * float(do.abs().max()),
        },
    )


SHAPES = [  # (B, T, H, D): T below, at and above the tiles; widths that are no power of two
    (2, 3, 2, 64), (1, 17, 1, 16), (2, 33, 1, 40), (1, 64, 1, 32), (1, 65, 2, 80), (1, 113, 1, 96),
    (1, 128, 1, 64), (1, 129, 1, 128), (1, 70, 1, 160), (1, 40, 1, 256), (1, 257, 1, 64),
    (1, 8, 1, 1),
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_reference(shape, dtype, deterministic, device):
    check(qkv(shape, dtype, device), deterministic=deterministic)


@pytest.mark.skipif(not INTERPRETED, reason="of the interpreter")
@pytest.mark.parametrize("length", [1, 40, 300])
def test_tiles_of_the_interpreter(length, deterministic, device, monkeypatch):
    monkeypatch.setattr("kernels._common.launch._architecture", lambda _: "interpreter")
    check(qkv((2, length, 1, 48), torch.bfloat16, device), deterministic=deterministic)
    with count_work() as work:
        attention(**qkv((2, length, 1, 48), torch.bfloat16, device))
    assert work.launches[0].programs == 2 * -(-length // 128)


@pytest.mark.parametrize("length", [1000, 1024])
def test_matches_reference_at_the_lengths_of_training(length, device):
    check(qkv((1, length, 1, 64), torch.float16, device), deterministic=False)


@pytest.mark.parametrize("window", [None, 1, 16, 24, 40, 2**40])
@pytest.mark.parametrize(
    ("length", "block_m", "block_n"),
    [(1, 16, 16), (53, 16, 16), (64, 32, 16), (61, 32, 16), (64, 16, 32), (83, 16, 64)],
)
def test_tiles_and_windows(length, block_m, block_n, window, deterministic, device, monkeypatch):
    use_tiles(monkeypatch, block_m, block_n)
    inputs = qkv((1, length, 1, 16), torch.float32, device)
    check(inputs, deterministic=deterministic, window=window)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2, 50, 3, 64), {}), ((2, 53, 2, 40), {"window": 24}),
        ((2, 40, 1, 16), {"dropout_p": 0.2}), ((2, 61, 2, 32), {"documents": [3, 20]}),
    ],
    ids=str,
)  # fmt: skip
def test_whole_tiles_of_dq_are_added(shape, options, device, monkeypatch):
    """As from sm_90 on: by a descriptor, which leaves out what lies outside of the tensor."""
    use_tiles(monkeypatch, 32, 16)
    whole_tiles = unittest.mock.Mock(return_value=True)
    monkeypatch.setattr(kernels._attention.operators, "adds_whole_tiles", whole_tiles)
    if "documents" in options:
        options = {"documents": bounds(*shape[:2], options["documents"], device)}
    if "dropout_p" in options:
        seed = torch.tensor([7], device=device)
        keep = dropout_mask(seed, shape[:3], 0.2)
        options = options | {"dropout_seed": seed, "keep": keep}
    check(qkv(shape, DTYPES[0], device), deterministic=False, **options)
    whole_tiles.assert_called()


@pytest.mark.parametrize("window", [None, 1, 24])
@pytest.mark.parametrize(
    ("T", "S", "block_m", "block_n"),
    [(1, 40, 16, 16), (7, 53, 16, 32), (33, 64, 32, 16), (40, 49, 32, 32), (16, 80, 16, 16)],
)
def test_queries_at_the_end_of_the_keys(T, S, block_m, block_n, window, device, monkeypatch):
    """The mask is aligned to the bottom right, dropout included: they give the last rows of all."""
    use_tiles(monkeypatch, block_m, block_n)
    inputs = {k: x.detach() for k, x in qkv((2, S, 2, 24), torch.float32, device).items()}
    inputs["q"] = inputs["q"][:, S - T :]
    compare(
        partial(attention, window=window, return_lse=True),
        partial(attention_reference, window=window),
        inputs,
    )
    seed = torch.tensor([5], device=device)
    keep = dropout_mask(seed, (2, S, 2), 0.3)[:, :, S - T :]
    compare(
        partial(attention, window=window, dropout_p=0.3, dropout_seed=seed),
        lambda **x: attention_reference(**x, window=window, dropout_p=0.3, keep=keep)[0],
        inputs,
    )


def test_rounding_is_unbiased_where_scores_tie_at_the_maximum(device):
    """Two keys tie, P = 1, and the others add almost nothing: arXiv 2510.04212.

    Where P V is rounded to bfloat16 before the division by the row's sum, half of the sums of two
    negative values lie between two numbers, and the little that is added decides them all. We
    divide in float32 and round once: what the others add may be more or less than the mean.
    """
    T, H, D = 16, 64, 64
    k = torch.zeros(1, T, H, D, device=device)
    k[:, [3, 11], :, 0] = 96.0  # 12 above the others, which are 0
    v = -2 - 2 * torch.rand(1, T, H, D, device=device)
    q = torch.zeros_like(k)
    q[..., 0] = 1.0
    q, k, v = (x.bfloat16() for x in (q, k, v))
    got = attention(q, k, v)[:, -1].double()
    scores = torch.einsum("bihd,bjhd->bhij", q.double(), k.double())[:, :, -1] / 8
    p = (scores - scores.amax(-1, keepdim=True)).exp()
    product = torch.einsum("bhj,bjhd->bhd", p, v.double())
    exact = product / p.sum(-1)[..., None]
    early = product.bfloat16().double() / p.sum(-1)[..., None]

    def bias(o: Tensor) -> float:
        """The mean error as a share of the mean distance: 1 if all errors have one sign."""
        return float((o - exact).mean().abs() / (o - exact).abs().mean())

    assert bias(early) > 0.9
    assert bias(got) < 0.1


@pytest.mark.parametrize("options", [{}, {"window": 5}, {"documents": [3, 20]}], ids=str)
def test_the_largest_logit_of_each_head(options, device):
    inputs = qkv((2, 40, 3, 16), torch.float16, device)
    if "documents" in options:
        options = {"documents": bounds(2, 40, options["documents"], device)}
    o, _, largest = attention(**inputs, **options, return_lse=True, return_max_logit=True)
    assert torch.equal(o, attention(**inputs, **options))
    q, k = (x.detach().double() for x in (inputs["q"], inputs["k"]))
    seen = torch.ones(40, 40, dtype=torch.bool, device=device).tril()
    if "window" in options:
        seen = seen.triu(1 - options["window"])
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / 4
    if "documents" in options:
        begins = options["documents"][0]
        seen = seen & (begins[:, None, :, None] == begins[:, None, None])
    exact = scores.masked_fill(~seen, -math.inf).amax((0, 2, 3))
    torch.testing.assert_close(largest.double(), exact, rtol=1e-5, atol=1e-5)
    packed = torch.stack(list(inputs.values()), 2)
    assert torch.equal(attention_qkvpacked(packed, **options, return_max_logit=True)[1], largest)
    assert not largest.requires_grad


@pytest.mark.parametrize("window", [None, 24])
@pytest.mark.parametrize(
    ("begins", "block_m", "block_n"),
    [
        ([16, 32], 16, 16), ([1, 2, 3, 40], 32, 16), ([5, 37, 70, 81], 16, 32),
        (list(range(82)), 16, 16), ([31, 32, 33, 64], 64, 16),
    ],
)  # fmt: skip
def test_documents(begins, block_m, block_n, window, deterministic, device, monkeypatch):
    use_tiles(monkeypatch, block_m, block_n)
    inputs = qkv((2, 83, 2, 16), torch.float32, device)
    documents = bounds(2, 83, begins, device)
    check(inputs, deterministic=deterministic, window=window, documents=documents)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_documents_are_computed_alone(dtype, deterministic, device):
    """One after another in a sequence, they give what each gives by itself."""
    lengths = [65, 1, 70, 128]
    inputs = qkv((1, sum(lengths), 2, 64), dtype, device)
    begins = torch.tensor([0, *lengths[:-1]]).cumsum(0).tolist()
    check(inputs, deterministic=deterministic, documents=bounds(1, 264, begins, device))
    with torch.no_grad():
        together = attention(**inputs, documents=bounds(1, 264, begins, device))
        parts = zip(*(x.split(lengths, 1) for x in inputs.values()), strict=True)
        alone = torch.cat([attention(*part) for part in parts], 1)
    # Other tiles sum in another order.
    torch.testing.assert_close(together, alone, rtol=0, atol=4 * torch.finfo(dtype).eps)


def test_document_bounds():
    first = torch.tensor([[0, 0, 1, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 1]], dtype=torch.bool)
    begins = [[0, 0, 2, 3, 3], [0] * 5, [0, 0, 0, 0, 4]]
    ends = [[2, 2, 3, 5, 5], [5] * 5, [4, 4, 4, 4, 5]]
    assert document_bounds(first).tolist() == [begins, ends]
    assert document_bounds(first[:, :0]).shape == (2, 3, 0)


@pytest.mark.parametrize(("heads", "group"), [(1, 2), (2, 1), (2, 2), (3, 2), (5, 3)])
def test_every_head_is_computed_whatever_the_grouping(heads, group, device, monkeypatch):
    use_tiles(monkeypatch, 16, 16)
    keys_and_values_of_a_head = 2 * 20 * 16 * 4
    cache = 2 * group * keys_and_values_of_a_head
    monkeypatch.setattr(kernels._attention.operators, "l2_bytes", lambda _: cache)
    check(qkv((1, 20, heads, 16), torch.float32, device), deterministic=False)


def test_unlike_gpus_in_one_machine_have_their_own_tiles_and_caches(monkeypatch):
    monkeypatch.undo()  # the tiles of all other tests
    cards, current = {0: (86, 6 << 20), 1: (90, 50 << 20)}, [0]

    @contextmanager
    def use(index):
        current.append(index)
        yield
        current.pop()

    driver = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", cards[current[-1]][0], 32)
    )
    monkeypatch.setattr(launch, "INTERPRETED", False)
    monkeypatch.setattr(triton.runtime, "driver", SimpleNamespace(active=driver))
    monkeypatch.setattr(torch.cuda, "device", use)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[-1])
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda x: SimpleNamespace(L2_cache_size=cards[x.index][1]),
    )
    launch._architecture.cache_clear()
    try:
        for index in (1, 0, 1):
            device = torch.device("cuda", index)
            assert launch.architecture(device) == f"sm_{cards[index][0]}"
            assert launch.l2_bytes(SimpleNamespace(device=device)) == cards[index][1]
        with use(1):
            assert launch.architecture(torch.device("cuda")) == "sm_90"
    finally:
        launch._architecture.cache_clear()


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_log_sum_exp(dtype, window, device):
    inputs = qkv((2, 20, 2, 32), dtype, device)
    o, lse = attention(**inputs, window=window, return_lse=True)
    assert lse.dtype == torch.float32
    assert not lse.requires_grad
    assert o.requires_grad
    compare(
        partial(attention, window=window, return_lse=True),
        partial(attention_reference, window=window),
        {name: x.detach() for name, x in inputs.items()},
    )


@pytest.mark.parametrize("scale", [0.01, 1.0, 3.0])
def test_scale(scale, deterministic, device):
    inputs = qkv((1, 20, 1, 16), torch.float32, device)
    check(inputs, deterministic=deterministic, scale=scale)


Make = Callable[..., Tensor]


def _packed(make: Make, b: int, t: int, h: int, d: int) -> list[Tensor]:
    return list(make(b, t, 3, h, d).unbind(2))


def _heads_first(make: Make, b: int, t: int, h: int, d: int) -> list[Tensor]:
    return [make(b, h, t, d).transpose(1, 2) for _ in range(3)]


def _time_first(make: Make, b: int, t: int, h: int, d: int) -> list[Tensor]:
    return [make(t, b, h, d).transpose(0, 1) for _ in range(3)]


def _in_nan(make: Make, b: int, t: int, h: int, d: int) -> list[Tensor]:
    """Slices along every axis of a tensor that is NaN elsewhere, at an odd address."""
    views = []
    for _ in range(3):
        room = make(b + 1, t + 5, h + 2, d + 7) * math.nan
        view = room[1:, 2 : t + 2, 1 : h + 1, 3 : d + 3]
        view.copy_(make(b, t, h, d))
        views.append(view)
    return views


def _broadcast(make: Make, b: int, t: int, h: int, d: int) -> list[Tensor]:
    """One batch and one head of keys and values for all."""
    q = make(b, t, h, d)
    k, v = (make(1, t, 1, d).expand(b, t, h, d) for _ in range(2))
    return [q, k, v]


def _mixed(make: Make, b: int, t: int, h: int, d: int) -> list[Tensor]:
    """Another layout for each."""
    layouts = (_packed, _heads_first, _time_first)
    return [layout(make, b, t, h, d)[0] for layout in layouts]


LAYOUTS = [_packed, _heads_first, _time_first, _in_nan, _broadcast, _mixed]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__[1:])
@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 20), (DTYPES[-1], 32)])
def test_reads_any_layout_in_place(layout, dtype, width, deterministic, device):
    tensors = layout(partial(randn, dtype=dtype, device=device), 2, 20, 2, width)
    inputs = {name: x.requires_grad_() for name, x in zip("qkv", tensors, strict=True)}
    check(inputs, deterministic=deterministic)


@pytest.mark.parametrize("layout", ["sum", "heads first", "sliced", "every second"])
def test_takes_any_upstream_gradient(layout, deterministic, device):
    b, t, h, d = shape = (2, 20, 2, 16)
    dense = torch.randn(b, h, t + 2, 2 * d, device=device).transpose(1, 2)
    upstream = {
        "sum": torch.ones((), device=device).expand(shape),
        "heads first": dense.transpose(1, 2)[:, :, :t, :d].contiguous().transpose(1, 2),
        "sliced": dense[:, 1 : t + 1, :, 5 : d + 5],
        "every second": dense[:, :t, :, ::2],
    }[layout]
    check(qkv(shape, torch.float32, device), deterministic=deterministic, do=upstream)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 20, 3, 2, 32), (1, 130, 3, 1, 48)], ids=str)
def test_packed_matches_reference(shape, dtype, deterministic, device):
    compare(
        partial(attention_qkvpacked, deterministic=deterministic),
        lambda qkv: reference(*qkv.unbind(2)),
        {"qkv": randn(*shape, dtype=dtype, device=device).requires_grad_()},
    )


def test_packed_reads_a_slice_of_a_wider_projection(device):
    wide = torch.full((2, 30, 3, 4, 40), math.nan, device=device)
    part = wide[:, :, :, 1:3, 8:24]
    part.copy_(torch.randn(2, 30, 3, 2, 16, device=device))
    compare(
        partial(attention_qkvpacked, window=7, scale=0.3),
        lambda qkv: reference(*qkv.unbind(2), window=7, scale=0.3),
        {"qkv": part.requires_grad_()},
    )


# ---- inputs that break attention kernels


@pytest.mark.parametrize(
    ("length", "dtype"),
    [
        (64, torch.float32),
        (192, torch.float32),
        (192, torch.bfloat16),
        pytest.param(1088, torch.bfloat16, marks=pytest.mark.cuda),
    ],
)
def test_very_negative_logits(length, dtype, deterministic, device):
    """Logits near -120, lse below -88, a length of 128k + 64: exp(-lse) overflows past the end."""
    inputs = qkv((1, length, 1, 64), dtype, device, grad=False)
    inputs["q"][..., 0] = 31
    inputs["k"][..., 0] = -31
    inputs = {name: x.requires_grad_() for name, x in inputs.items()}
    _, lse = attention(**inputs, return_lse=True)
    assert float(lse.max()) < -88
    check(inputs, deterministic=deterministic)


def test_one_huge_logit(deterministic, device):
    inputs = qkv((1, 70, 1, 16), torch.float32, device, grad=False)
    inputs["k"][:, 33] *= 1e4
    check({name: x.requires_grad_() for name, x in inputs.items()}, deterministic=deterministic)


def test_float16_near_overflow(deterministic, device):
    """Scores far beyond float16's range, values at its edge: all sums are in float32."""
    inputs = qkv((1, 70, 1, 64), torch.float16, device, grad=False)
    inputs["q"] *= 100
    inputs["k"] *= 100
    inputs["v"] = inputs["v"].sign() * 60000
    o = attention(**inputs)
    exact = reference(**{name: x.double() for name, x in inputs.items()})
    assert o.isfinite().all()
    assert float((o - exact).abs().max()) <= torch.finfo(torch.float16).eps * 60000


def test_nothing_leaks_from_the_future(device):
    """Changing position 40 and later changes no earlier output, to the bit."""
    inputs = qkv((1, 70, 1, 16), torch.float32, device, grad=False)
    before = attention(**inputs)
    for x in inputs.values():
        x[:, 40:] *= 100
    after = attention(**inputs)
    assert torch.equal(before[:, :40], after[:, :40])
    assert not (before[:, 40:] == after[:, 40:]).any()


# ---- dropout


@pytest.mark.parametrize(("dropout_p", "window"), [(0.1, None), (0.5, 21)])
def test_dropout_matches_reference_with_the_mask_read_out(
    dropout_p, window, deterministic, device, monkeypatch
):
    use_tiles(monkeypatch, 32, 16)
    seed = torch.tensor([2**40 + 77], device=device)
    check(
        qkv((1, 33, 2, 16), torch.float32, device),
        deterministic=deterministic,
        window=window,
        dropout_p=dropout_p,
        dropout_seed=seed,
        keep=dropout_mask(seed, (1, 33, 2), dropout_p),
    )


def test_dropout_mask_is_random_and_depends_on_the_place_alone(device):
    seed = torch.tensor([5], device=device)
    keep = dropout_mask(seed, (2, 50, 2), 0.25)
    assert keep.shape == (2, 2, 50, 50)
    expected = 0.75 * keep.numel()
    assert abs(int(keep.sum()) - expected) < 5 * math.sqrt(expected * 0.25)
    rows = keep.flatten(0, 2)
    assert len(rows.unique(dim=0)) == len(rows), "two rows drop the same columns"
    columns = keep.transpose(2, 3).flatten(0, 2)
    assert len(columns.unique(dim=0)) == len(columns), "two columns are dropped in the same rows"
    assert torch.equal(dropout_mask(seed, (2, 30, 2), 0.25), keep[:, :, :30, :30])
    assert not torch.equal(dropout_mask(seed + 2**32, (2, 50, 2), 0.25), keep)
    assert dropout_mask(seed, (1, 33, 1), 0.0).all()


def test_dropout_follows_the_manual_seed(device):
    inputs = qkv((1, 20, 1, 16), torch.float32, device, grad=False)
    torch.manual_seed(1)
    first = attention(**inputs, dropout_p=0.5)
    second = attention(**inputs, dropout_p=0.5)
    torch.manual_seed(1)
    assert torch.equal(attention(**inputs, dropout_p=0.5), first)
    assert not torch.equal(first, second)


# ---- autograd, operators, compilation


@pytest.mark.parametrize("trained", ["q", "k", "v", "qk", "qv", "kv"])
def test_frozen_inputs_get_no_gradient(trained, deterministic, device):
    inputs = qkv((1, 20, 1, 16), torch.float32, device, grad=False)
    inputs = {name: x.requires_grad_(name in trained) for name, x in inputs.items()}
    report = check(inputs, deterministic=deterministic)
    assert set(report) == {"out", *(f"d{name}" for name in trained)}


def test_the_graph_of_the_one_pass_backward_can_be_used_twice(device):
    inputs = qkv((2, 20, 1, 16), torch.float32, device)
    check_double_use(partial(attention, deterministic=False), inputs)


@pytest.mark.parametrize("shape", [(0, 8, 2, 16), (2, 8, 0, 16), (2, 0, 2, 16)], ids=str)
def test_empty_input_gives_empty_output_and_gradients(shape, deterministic, device):
    function = partial(attention, deterministic=deterministic)
    compare(function, reference, qkv(shape, torch.float32, device))


@pytest.mark.parametrize(
    "options", [{}, {"window": 5, "dropout_p": 0.1}], ids=["plain", "window and dropout"]
)
def test_compiles_without_a_graph_break(options, device):
    def model(qkv: Tensor) -> Tensor:
        q, k, v = (2 * qkv).unbind(2)
        return attention(q, k, v, **options) + attention_qkvpacked(2 * qkv, **options)

    check_compiles(model, [randn(1, 8, 3, 1, 16, device=device).requires_grad_()])


@pytest.mark.parametrize("seeded", [False, True])
def test_operators_pass_opcheck(seeded, device):
    ops = torch.ops.gpt2_triton
    q, k, v = (torch.randn(1, 8, 1, 16, device=device) for _ in range(3))
    seed = torch.tensor([1], device=device) if seeded else None
    documents = bounds(1, 8, [0, 3], device) if seeded else None
    options = (documents, 0.25, 7, 0.1 if seeded else 0.0, False)
    for need_max in (False, True):
        torch.library.opcheck(ops.attention_fwd.default, (q, k, v, seed, *options, need_max))
    o, lse, _ = ops.attention_fwd(q, k, v, seed, *options, False)
    for need_dq, need_dkv in ((True, True), (True, False)) if seeded else ((False, True),):
        torch.library.opcheck(
            ops.attention_bwd.default, (o, q, k, v, o, lse, seed, *options, True, need_dq, need_dkv)
        )
    packed = torch.stack([q, k, v], 2)
    torch.library.opcheck(
        ops.attention_qkvpacked_bwd.default, (o, packed, o, lse, seed, *options, True)
    )


def test_the_global_switch_selects_the_deterministic_backward(device, monkeypatch):
    chosen = []
    launch = kernels._attention.operators._launch_bwd

    def record(*args: Any) -> None:
        chosen.append(args[-1])
        launch(*args)

    monkeypatch.setattr(kernels._attention.operators, "_launch_bwd", record)
    for switch in (True, False):
        torch.use_deterministic_algorithms(switch, warn_only=True)
        attention(**qkv((1, 8, 1, 16), torch.float32, device)).sum().backward()
    assert chosen == [True, False]


# ---- what is refused


def _on(device: torch.device, *shape: int, **kwargs: Any) -> Tensor:
    return torch.zeros(shape, device=device, **kwargs)


@pytest.mark.parametrize(
    ("message", "make"),
    [
        (r"\(B, T, H, D\), got shape \(2, 8, 16\)", lambda d: (_on(d, 2, 8, 16),) * 3),
        (
            r"\(1, 8, 2, 16\) for q, \(1, 8, 1, 16\) for k",
            lambda d: (_on(d, 1, 8, 2, 16), _on(d, 1, 8, 1, 16), _on(d, 1, 8, 2, 16)),
        ),
        (
            r"k and v may have more positions\), got .* \(1, 7, 1, 16\) for k",
            lambda d: (_on(d, 1, 8, 1, 16), *(_on(d, 1, 7, 1, 16),) * 2),
        ),
        ("one shape", lambda d: (*(_on(d, 1, 8, 1, 16),) * 2, _on(d, 1, 9, 1, 16))),
        ("1..256, got 257", lambda d: (_on(d, 1, 8, 1, 257),) * 3),
        ("1..256, got 0", lambda d: (_on(d, 1, 8, 1, 0),) * 3),
        ("last stride of q must be 1, got 2", lambda d: (_on(d, 1, 8, 1, 32)[..., ::2],) * 3),
        (
            "time stride of q must be below",
            lambda d: (_on(d, 1, 1, 1, 16).as_strided((1, 1, 1, 16), (1, 2**24, 1, 1)),) * 3,
        ),
        ("float64", lambda d: (_on(d, 1, 8, 1, 16, dtype=torch.float64),) * 3),
        (
            "share device and dtype",
            lambda d: (_on(d, 1, 8, 1, 16), _on(d, 1, 8, 1, 16).half(), _on(d, 1, 8, 1, 16)),
        ),
    ],
)
def test_refuses_tensors_that_it_cannot_take(message, make, device):
    with pytest.raises(ValueError, match=message):
        attention(*make(device))


def test_fewer_queries_than_keys_have_no_backward_and_no_documents(device):
    k = torch.zeros(1, 8, 1, 16, device=device, requires_grad=True)
    q = k[:, 3:]
    with pytest.raises(ValueError, match=r"as many queries as keys, got 5 and 8; use torch.no_gr"):
        attention(q, k, k)
    with torch.no_grad():
        assert attention(q, k, k).shape == (1, 5, 1, 16)
        with pytest.raises(ValueError, match="documents need as many queries as keys"):
            attention(q, k, k, documents=bounds(1, 8, [2], device))


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("window must be at least 1.*got 0", {"window": 0}),
        ("scale must be positive, got -1", {"scale": -1.0}),
        ("scale must be positive, got nan", {"scale": math.nan}),
        (r"dropout_p must be in \[0, 1\), got 1", {"dropout_p": 1.0}),
        (
            "dropout_seed must be an int64 tensor of one element on .*, got 5",
            {"dropout_p": 0.1, "dropout_seed": 5},
        ),
        (
            r"got tensor\(\[\], dtype=torch.int64\)",
            {"dropout_p": 0.1, "dropout_seed": torch.zeros(0, dtype=torch.int64)},
        ),
        (r"got tensor\(\[0.\]\)", {"dropout_p": 0.1, "dropout_seed": torch.zeros(1)}),
    ],
)
def test_refuses_options_out_of_range(message, options, device):
    packed = torch.zeros(1, 8, 3, 1, 16, device=device)
    with pytest.raises(ValueError, match=message):
        attention(*packed.unbind(2), **options)
    with pytest.raises(ValueError, match=message):
        attention_qkvpacked(packed, **options)


def test_packed_refuses_what_is_not_packed(device):
    with pytest.raises(ValueError, match=r"\(B, T, 3, H, D\), got shape \(1, 8, 2, 1, 16\)"):
        attention_qkvpacked(torch.zeros(1, 8, 2, 1, 16, device=device))
