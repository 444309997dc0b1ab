"""Faults planted in the attention kernels and launchers: each must fail the test beside it."""

from typing import Any

import pytest
import torch

import kernels._attention.kernels
import kernels._attention.operators
import kernels.attention
from tests.kernels import test_attention as checks
from tests.kernels import test_attention_layouts as layouts
from tests.kernels.fused import MARKS
from tests.kernels.mutations import Cases, Mutation, each_fault, expect_caught

pytestmark = [*MARKS, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

ONE_PASS, TWO_PASS = {"deterministic": False}, {"deterministic": True}
SMALL = {"length": 53, "block_m": 16, "block_n": 16}
# The test that must catch a fault, and its arguments.
TILES = (checks.test_tiles_and_windows, SMALL | {"window": None} | ONE_PASS)
TWO_PASS_TILES = (checks.test_tiles_and_windows, SMALL | {"window": None} | TWO_PASS)
BAND = (checks.test_tiles_and_windows, SMALL | {"window": 24} | ONE_PASS)
# Documents in one tile, and one that begins in it and ends two tiles later.
DOCUMENTS = (
    checks.test_documents,
    {"begins": [1, 2, 3, 40], "block_m": 32, "block_n": 16, "window": None} | ONE_PASS,
)
TWO_PASS_DOCUMENTS = (DOCUMENTS[0], DOCUMENTS[1] | TWO_PASS)
SHAPE = (
    checks.test_matches_reference,
    {"dtype": torch.float32, "shape": (1, 65, 2, 80)} | ONE_PASS,
)
SHIFTED = (
    checks.test_queries_at_the_end_of_the_keys,
    {"T": 7, "S": 53, "block_m": 16, "block_n": 32, "window": None},
)
WHOLE_TILES = (
    checks.test_whole_tiles_of_dq_are_added,
    {"shape": (2, 50, 3, 64), "options": {}},
)
MASK = (checks.test_dropout_mask_is_random_and_depends_on_the_place_alone,)
DROPOUT = (checks.test_dropout_matches_reference_with_the_mask_read_out,)


def layout(function: Any) -> tuple[Any, dict[str, Any]]:
    arguments = {"dtype": torch.float32, "layout": function, "width": 20}
    return layouts.test_reads_any_layout_in_place, arguments | ONE_PASS


KERNELS = [
    Mutation("a row does not see itself", "seen = cols <= rows", "seen = cols < rows", *TILES),
    Mutation(
        "a row sees one key of the future",
        "seen = cols <= rows", "seen = cols <= rows + 1", checks.test_nothing_leaks_from_the_future,
    ),
    Mutation("the window is one too wide", "cols > rows - window", "cols >= rows - window", *BAND),
    Mutation(
        "the walk over keys starts one tile late",
        "tl.maximum(m - window + 1, 0)", "tl.maximum(m - window + 1 + BLOCK_N, 0)", *BAND,
    ),
    Mutation(
        "the walk over rows ends before the window of the last key does",
        "n + BLOCK_N - 1 + window", "n + window", *BAND,
    ),
    Mutation(
        "a row sees the last key of the document before its own",
        "cols >= (begins - origin)[:, None]", "cols >= (begins - 1 - origin)[:, None]", *DOCUMENTS,
    ),
    Mutation(
        "the walk over keys begins with the document of the last row",
        "tl.maximum(edge, tl.load(begins_ptr + m))",
        "tl.maximum(edge, tl.load(begins_ptr + end - 1))", *DOCUMENTS,
    ),
    Mutation(
        "keys before the document of the last row count as whole tiles",
        "tl.maximum(whole, tl.load(begins_ptr + end - 1))",
        "tl.maximum(whole, tl.load(begins_ptr + m))", checks.test_documents,
        {"begins": [31, 32, 33, 64], "block_m": 64, "block_n": 16, "window": None} | ONE_PASS,
    ),
    Mutation(
        "dq takes the keys of the document before",
        "(cols[None, :] >= begins[:, None])", "(cols[None, :] >= 0)", *TWO_PASS_DOCUMENTS,
    ),
    Mutation(
        "a key is seen by the first row of the next document",
        "rows[None, :] < ends[:, None]", "rows[None, :] <= ends[:, None]", *DOCUMENTS,
    ),
    Mutation(
        "the walk over rows ends with the document of the first key",
        "tl.load(ends_ptr + tl.minimum(n + BLOCK_N, T) - 1)", "tl.load(ends_ptr + n)", *DOCUMENTS,
    ),
    Mutation(
        "every row of a batch has the documents of the first",
        "batch_heads // H * T + b * T", "batch_heads // H * T", *DOCUMENTS,
    ),
    Mutation("queries are the first positions", "first_position += shift", "pass", *SHIFTED),
    Mutation("the keys end with the queries", "keys += shift", "pass", *SHIFTED),
    Mutation(
        "dropout counts rows and not positions",
        "_keep(seed, head, positions, n", "_keep(seed, head, rows, n", *SHIFTED,
    ),
    Mutation(
        "in a window the diagonal has one tile too few",
        "part == DIAGONAL and not SHIFTED", "part == DIAGONAL", SHIFTED[0],
        SHIFTED[1] | {"window": 24, "block_m": 16, "block_n": 16},
    ),
    Mutation(
        "the sum of values is rounded before the division",
        "o = (acc / row_sum[:, None])",
        "o = (acc.to(o_ptr.dtype.element_ty).to(tl.float32) / row_sum[:, None])",
        checks.test_rounding_is_unbiased_where_scores_tie_at_the_maximum,
    ),
    Mutation(
        "the largest logit is that of the last tile",
        "tl.store(max_ptr + own + rows, row_max", "tl.store(max_ptr + own + rows, tl.max(s, 1)",
        checks.test_the_largest_logit_of_each_head, {"options": {}},
    ),
    Mutation(
        "tiles on the diagonal count as whole",
        "    diagonal = m // BLOCK_N * BLOCK_N", "    diagonal = m + BLOCK_M", *TWO_PASS_TILES,
    ),
    Mutation(
        "the output is not rescaled when the maximum grows",
        "acc * rescale[:, None]", "acc", *TILES,
    ),
    Mutation(
        "the sum is not rescaled when the maximum grows",
        "row_sum * rescale +", "row_sum +", *TILES,
    ),
    Mutation(
        "a row that has seen nothing yet makes a NaN",
        'tl.where(new_max == float("-inf"), 0.0, new_max)', "new_max", *BAND,
    ),
    Mutation(
        "the log-sum-exp mixes its bases",
        "row_max + tl.log2(row_sum)", "row_max + tl.log(row_sum)", checks.test_log_sum_exp,
        {"dtype": torch.float32, "window": None},
    ),
    Mutation(
        "probabilities pass through float16 on their way to the second product",
        "p.to(v.dtype)", "p.to(tl.float16).to(v.dtype)", *SHAPE,
    ),
    Mutation("delta is left out of dq", "p * (dp - delta[:, None])", "p * dp", *TWO_PASS_TILES),
    Mutation("delta is left out of dk", "p * (dp - delta[None, :])", "p * dp", *TILES),
    Mutation(
        "dk is not scaled",
        "(dk * scale)", "dk", checks.test_scale, {"scale": 3.0} | ONE_PASS,
    ),
    Mutation(
        "keys off the diagonal add no share of dq",
        "            if dq_sum_ptr is not None:\n                dq =",
        "            if dq_sum_ptr is not None and part == DIAGONAL:\n                dq =", *TILES,
    ),
    Mutation(
        "tiles of dq go to the first head",
        "[head // H, m, head % H, 0]", "[head // H, m, 0, 0]", *WHOLE_TILES,
    ),
    Mutation(
        "a tile of dq is added with rows and columns exchanged",
        "tl.reshape(dq, (1, BLOCK_M, 1, BLOCK_D))",
        "tl.reshape(tl.trans(dq), (1, BLOCK_M, 1, BLOCK_D))", *WHOLE_TILES,
    ),
    Mutation(
        "the buffer of dq does not start at zero",
        "tl.zeros((BLOCK_M, BLOCK_D), tl.float32),",
        "tl.full((BLOCK_M, BLOCK_D), 1e-3, tl.float32),", *SHAPE,
    ),
    Mutation(
        "one row past the end is read",
        "mask=_inside(start, T, D,", "mask=_inside(start, T + 1, D,", *layout(layouts._in_nan),
    ),
    Mutation(
        "one column past the head width is read",
        "mask=_inside(start, T, D,", "mask=_inside(start, T, D + 1,", *layout(layouts._packed),
    ),
    Mutation(
        "values are read with the strides of keys",
        "v_ptr + b * stride_vb + h * stride_vh, n, stride_vt",
        "v_ptr + b * stride_kb + h * stride_kh, n, stride_kt", *layout(layouts._mixed),
    ),
    Mutation(
        "a group of heads computes its first one only",
        "first + place % width", "first", checks.test_every_head_is_computed_whatever_the_grouping,
        {"heads": 5, "group": 3},
    ),
    Mutation("the dropout seed is ignored", "tl.philox(seed,", "tl.philox(0,", *MASK),
    Mutation("heads share one dropout mask", "head, 0)", "0, 0)", *MASK),
    Mutation(
        "the backward draws another dropout mask than the forward",
        "tl.trans(_keep(seed,", "tl.trans(_keep(seed + 1,", *DROPOUT,
        {"dropout_p": 0.5, "window": 21} | ONE_PASS,
    ),
    Mutation(
        "kept probabilities are not scaled up",
        "acc /= 1.0 - dropout_p", "acc *= 1.0", *DROPOUT,
        {"dropout_p": 0.1, "window": None} | ONE_PASS,
    ),
]  # fmt: skip

PACKED = {"dtype": torch.float32, "shape": (2, 20, 3, 2, 32)}

OPERATORS = [
    Mutation(
        "the packed gradient has dk and dv in each other's place",
        "dq, dk, dv = dqkv.unbind(2)", "dq, dv, dk = dqkv.unbind(2)",
        layouts.test_packed_matches_reference, PACKED | ONE_PASS,
    ),
    Mutation(
        "the gradient's layout is not looked at",
        "*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *do.stride()[:3]",
        "*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *o.stride()[:3]",
        layouts.test_takes_any_upstream_gradient, {"layout": "sliced"} | ONE_PASS,
    ),
]  # fmt: skip

FUNCTIONS = [
    Mutation(
        "the window is lost on the way to the backward",
        "ctx.settings = settings", "ctx.settings = settings._replace(window=None)",
        layouts.test_packed_reads_a_slice_of_a_wider_projection, count=2,
    )
]  # fmt: skip


CASES: Cases = [
    (kernels._attention.kernels, [kernels._attention.operators], KERNELS),
    (kernels._attention.operators, [kernels.attention], OPERATORS),
    (kernels.attention, [layouts], FUNCTIONS),
]


@each_fault(CASES)
def test_fault_is_caught(fault, tmp_path, device, monkeypatch):
    expect_caught(*fault, tmp_path, device=device, monkeypatch=monkeypatch)
