"""Causal attention against its reference: shapes, layouts and options, forward and backward.

Without a GPU the kernels run in `kernels.interpreter`. Tiles are made small where it is the tiling
that is tested.
"""

import math
import unittest.mock
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

import kernels._attention.operators
from kernels._attention.operators import dropout_mask
from kernels._common import launch
from kernels._common.launch import INTERPRETED
from kernels.attention import attention, attention_qkvpacked, attention_reference
from kernels.documents import document_bounds
from kernels.testing import compare
from tests.kernels.attention import bounds, check, qkv, reference, use_tiles
from tests.kernels.fused import DTYPES, MARKS
from tests.kernels.work_counts import count_work

pytestmark = MARKS


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
