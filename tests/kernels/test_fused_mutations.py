"""Faults planted in the fused kernels and their launchers: each must fail the test beside it."""

from typing import Any

import pytest
import torch

import kernels._common.head
import kernels._common.partials
import kernels._norm.kernels
import kernels._norm.operators
import kernels.cross_entropy
import kernels.gelu
import kernels.layer_norm
import kernels.linear_cross_entropy
import kernels.rms_norm
import kernels.swiglu
from tests.kernels import (
    fused,
    test_cross_entropy,
    test_every_operator,
    test_gelu,
    test_linear_cross_entropy,
    test_norms,
    test_swiglu,
)
from tests.kernels.mutations import Cases, Mutation, each_fault, expect_caught

pytestmark = [*fused.MARKS, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

SINGLE = {"dtype": torch.float32}
HALF = {"dtype": torch.float16}
ODD = SINGLE | {"shape": (9, 257)}
RMS = (test_norms.test_matches_reference, ODD | {"op": "rms_norm", "bias": False})
LAYER = (test_norms.test_matches_reference, ODD | {"op": "layer_norm", "bias": True})
WALK = (test_norms.test_programs_that_walk_over_many_tiles, {"op": "rms_norm", "rows": 100})
GELU = (test_gelu.test_matches_reference, ODD | {"bias": torch.float32})
GELU_WALK = (test_gelu.test_programs_that_walk_over_many_tiles, {"rows": 100})
GATED = (test_swiglu.test_matches_reference, ODD)
WEIGHED = (
    test_cross_entropy.test_the_loss_of_each_token_and_its_weight, SINGLE | {"reduction": "mean"}
)  # fmt: skip
LOSS = (test_cross_entropy.test_matches_reference, SINGLE | {"shape": (3, 5000)})
HEAD = (
    test_linear_cross_entropy.test_is_within_the_error_budget_for_every_chunking,
    SINGLE | {"shape": (13, 257, 16), "chunk_bytes": 4 * 288 * 3},
)


def loss_options(name: str) -> tuple[Any, dict[str, Any]]:
    options = test_cross_entropy.OPTIONS[name]
    return test_cross_entropy.test_options_over_several_blocks, SINGLE | {"options": options}


NORM_KERNELS = [
    Mutation(
        "eps is dropped",
        "_multiply(x, x), C) + eps)", "_multiply(x, x), C))", test_norms.test_rows_of_any_size,
        {"scale": 1e-4},
    ),
    Mutation("variance about zero", "x = _centre(x, mean, C, STARTS, WIDTHS)", "x = x", *LAYER),
    Mutation(
        "the variance counts the lanes past the end",
        "if STARTS[i] + WIDTHS[i] > C:", "if False:",
        test_norms.test_a_large_mean_costs_no_more_than_in_pytorch, {"mean": 100.0},
    ),
    Mutation("a mean over a column too many", "return total / C", "return total / (C + 1)", *RMS),
    Mutation(
        "a piece is left out of the sums",
        "tl.static_range(1, len(pieces))", "tl.static_range(2, len(pieces))", *RMS, count=3,
    ),
    Mutation("the last row is lost", "exists = rows < N", "exists = rows < N - 1", *RMS, count=2),
    Mutation("dx lacks the mean of g", "* slope + shift)", "* slope)", *LAYER),
    Mutation("dx lacks the mean of g n", "(normed[i] * slope + shift)", "shift", *RMS),
    Mutation(
        "a wide piece is left out of the sums of the backward",
        "total = _fold(total, pieces[i].shape[0], pieces[i].shape[1]) + pieces[i]",
        "total = pieces[i]", *LAYER,
    ),
    Mutation("the means change places", "one, other = tl.split", "other, one = tl.split", *LAYER),
    Mutation(
        "the weight gradient keeps the last tile only",
        "dweight = _add(dweight, _multiply(dy, normed))", "dweight = _multiply(dy, normed)", *WALK,
    ),
    Mutation(
        "the bias gradient keeps the last tile only",
        "dbias = _add(dbias, dy)", "dbias = dy", test_norms.test_programs_that_walk_over_many_tiles,
        {"op": "layer_norm", "rows": 100},
    ),
    Mutation(
        "the gradient around the norm is forgotten",
        "if dtotal_ptr is not None:", "if False:", test_norms.test_add_takes_two_dtypes,
        SINGLE | {"op": "rms_norm", "residual": torch.float32},
    ),
    Mutation(
        "the sum is not returned as it was normed",
        "_store(total_ptr + rows * C, x,", "_store(total_ptr + rows * C, residual,",
        test_norms.test_add_takes_two_dtypes,
        SINGLE | {"op": "rms_norm", "residual": torch.float32},
    ),
    Mutation(
        "the upstream gradient is taken for contiguous",
        "dy_ptr + rows * stride_dy", "dy_ptr + rows * C", test_norms.test_reads_any_layout,
        {"op": "rms_norm", "name": "upstream", "layout": fused.LAYOUTS["in nan"]},
    ),
    Mutation(
        "the walk skips every second tile",
        "tl.num_programs(0), num_stages", "2 * tl.num_programs(0), num_stages", *WALK,
    ),
]  # fmt: skip
NORM_OPERATORS = [
    Mutation(
        "partial sums in float16",
        "stats.new_empty((len(sums), programs, width))",
        "stats.new_empty((len(sums), programs, width), dtype=torch.float16)", *WALK,
    ),
    Mutation(
        "statistics in float16",
        "stats = x.new_empty((2 if centred else 1, n), dtype=torch.float32)",
        "stats = x.new_empty((2 if centred else 1, n), dtype=torch.float16)", *RMS,
    ),
    Mutation(
        "dbias goes where dweight belongs",
        "sum_partials(partials, *sums)", "sum_partials(partials, *sums[::-1])", *LAYER,
    ),
]  # fmt: skip
PARTIALS = [
    Mutation("one program's sums are left out", "mask=(rows < P)", "mask=(rows < P - 1)", *WALK)
]  # fmt: skip
GELU_FAULTS = [
    Mutation("another cubic coefficient", "tl.constexpr(0.044715)", "tl.constexpr(0.0447)", *GELU),
    Mutation("the derivative of the cube lacks its 3", "(3 * CUBIC", "(CUBIC", *GELU),
    Mutation("the bias gradient keeps the last tile only", "dbias += dx", "dbias = dx", *GELU_WALK),
    Mutation(
        "large negative inputs meet the bound on exp",
        "tl.where(power > 115.0, 0.0, reciprocal(1 + e, dx_ptr.dtype.element_ty))",
        "reciprocal(1 + e, dx_ptr.dtype.element_ty)", test_gelu.test_every_size_of_input,
        SINGLE,
    ),
]  # fmt: skip
SWIGLU_FAULTS = [
    Mutation("silu's derivative lacks a term", "(s + silu * (1 - s))", "s", *GATED),
    Mutation(
        "the gradient overwrites the projection",
        "dgate_up = gate_up.new_empty(gate_up.shape)", "dgate_up = gate_up",
        test_every_operator.test_use_of_the_graph, {"name": "swiglu_packed"},
    ),
    Mutation(
        "up is read with the stride of y",
        "up_ptr + rows * stride_up", "up_ptr + rows * C",
        test_swiglu.test_reads_views_of_one_projection_in_place, count=2,
    ),
]  # fmt: skip
LOSS_FAULTS = [
    Mutation(
        "padding takes part in the softmax",
        'x = tl.where(cols < vocab_size, x, float("-inf"))', "x = x",
        test_cross_entropy.test_padding_takes_no_part, {"vocab_size": 1111, "options": "plain"},
    ),
    Mutation(
        "padding gets a gradient",
        "dx = tl.where(cols < vocab_size, dx, 0.0)", "dx = dx",
        test_cross_entropy.test_padding_takes_no_part, {"vocab_size": 1111, "options": "all"},
    ),
    Mutation(
        "the sum is not rescaled when the maximum grows",
        "total * tl.exp2((top - shift) * LOG2E)", "total", *LOSS,
    ),
    Mutation(
        "the tail of the row is left out",
        "tl.range(whole, V, TAIL_BLOCK)", "tl.range(whole, whole, TAIL_BLOCK)", *LOSS,
    ),
    Mutation(
        "one block of the gradient is not written",
        "tl.range(0, whole // BLOCK)", "tl.range(1, whole // BLOCK)", *LOSS,
    ),
    Mutation("dx lacks onehot", "* slope - spread - hit", "* slope - spread", *LOSS),
    Mutation(
        "ignored rows keep what their gradient's memory held",
        "zeros, mask=cols < V", "zeros, mask=cols < 0", *LOSS,
    ),
    Mutation("z-loss counts half", "2.0 * z_loss * lse", "z_loss * lse", *loss_options("z-loss")),
    Mutation("smoothing misses dx", "slope - spread\n", "slope\n", *loss_options("smoothing")),
    Mutation(
        "lanes that saw only -inf",
        'shift = tl.where(new_top == float("-inf"), 0.0, new_top)', "shift = new_top",
        test_cross_entropy.test_classes_that_are_ruled_out,
    ),
    Mutation(
        "the loss is a difference of large numbers",
        "loss = log_total + (1.0 - smoothing) * (row_top - x_target)", "loss = lse - x_target",
        test_cross_entropy.test_an_offset_changes_nothing, {"offset": 1e4},
    ),
    Mutation(
        "small upstream gradients are taken for 1",
        "factor != 1.0", "factor > 1.0", test_cross_entropy.test_the_upstream_gradient_scales,
        SINGLE | {"factor": 0.25},
    ),
    Mutation("weights miss the loss", "share = weight / tl.load", "share = 1 / tl.load", *WEIGHED),
    Mutation(
        "weights miss the gradient of the sum",
        "share if MEAN else weight", "share if MEAN else 1.0",
        WEIGHED[0], WEIGHED[1] | {"dtype": torch.float16},
    ),
    Mutation(
        "all rows get the upstream gradient of the first",
        "tl.load(factor_ptr + row)", "tl.load(factor_ptr)",
        WEIGHED[0], WEIGHED[1] | {"reduction": "none"},
    ),
    Mutation(
        "float16 holds the gradient of the mean",
        "return dtype != torch.float16", "return True",
        test_cross_entropy.test_float16_gradients_survive_the_mean_until_the_loss_is_scaled,
    ),
]  # fmt: skip
HEAD_FAULTS = [
    Mutation("1/n is forgotten", "sums, dloss / count", "sums, dloss", *HEAD),
    Mutation(
        "chunks exceed the budget",
        "most = max(1, chunk_bytes // row_bytes)", "most = max(1, 2 * chunk_bytes // row_bytes)",
        test_linear_cross_entropy.test_chunks_fit_the_budget_and_are_even,
    ),
    Mutation(
        "ignored rows count in the mean",
        "counted.sum(dtype", "torch.ones_like(counted).sum(dtype", *LOSS,
    ),
]  # fmt: skip
OPERATOR_FAULTS = [
    Mutation(
        "the rows' upstream gradients are taken for 1",
        "targets, weights / largest", "targets, torch.ones_like(weights)",
        test_linear_cross_entropy.test_the_loss_of_each_token_and_its_weight,
        SINGLE | {"reduction": "none"},
    ),
    Mutation(
        "chunks take the weights of the first", "token_weights[rows]",
        "token_weights[: rows.stop - start]",
        test_linear_cross_entropy.test_the_loss_of_each_token_and_its_weight,
        SINGLE | {"reduction": "mean"},
    ),
    Mutation("every chunk overwrites dW", "first=start == 0", "first=True", *HEAD),
    Mutation(
        "a frozen head pays for its gradient",
        "needs = [with_grad and need for need in ctx.needs_input_grad[:2]]",
        "needs = [with_grad, with_grad]",
        test_linear_cross_entropy.test_one_product_and_one_more_for_each_gradient, {"trained": "x"},
    ),
    Mutation(
        "float16 sums of dW over chunks",
        "a, b = a.float(), b.float()",
        "total.copy_((a @ b if first else total + a @ b).half()); return",
        test_linear_cross_entropy.test_dw_over_many_chunks_is_as_exact_as_over_one,
    ),
]  # fmt: skip

CASES: Cases = [
    (kernels._norm.kernels, [kernels._norm.operators], NORM_KERNELS),
    (kernels._norm.operators, [kernels.rms_norm, kernels.layer_norm], NORM_OPERATORS),
    (kernels._common.partials, [kernels._norm.operators], PARTIALS),
    (kernels.gelu, [test_gelu], GELU_FAULTS),
    (kernels.swiglu, [test_swiglu, test_every_operator], SWIGLU_FAULTS),
    (kernels.cross_entropy, [test_cross_entropy], LOSS_FAULTS),
    (
        kernels._common.head,
        [kernels.linear_cross_entropy, kernels.cross_entropy, test_linear_cross_entropy],
        HEAD_FAULTS,
    ),
    (kernels.linear_cross_entropy, [test_linear_cross_entropy], OPERATOR_FAULTS),
]


@each_fault(CASES)
def test_fault_is_caught(fault, tmp_path, device, monkeypatch):
    fixtures = {"device": device, "monkeypatch": monkeypatch, "make": test_swiglu.packed}
    expect_caught(*fault, tmp_path, **fixtures)
