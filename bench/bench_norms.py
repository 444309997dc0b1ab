"""LayerNorm and RMSNorm, alone and fused with the residual addition, forward and backward.

    pytest bench/bench_norms.py --benchmark-only

Variants: ours (triton); PyTorch as one writes it (eager: `F.layer_norm`; RMSNorm written out, as in
LLaMA's code; the addition as an operator of its own); the same under torch.compile; `F.rms_norm`;
Liger-Kernel, which has no residual + LayerNorm. Liger may not overwrite the gradient that comes in
(`in_place=False`), as all variants share it.

Rates count the bytes that must move, for N rows of C values (`kernels/layer_norm.py`): forward 2 N
C values (read x, write y), with the addition 4; backward 3 (read dy and x, write dx), with the
addition 4. Weights and statistics are left out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.harness.measure import Case, Measure, Setting
from bench.harness.passes import Contender, Function, Inputs, operator_case
from bench.harness.peers import eager_and_compiled, liger, ours
from kernels.layer_norm import (
    add_layer_norm,
    add_layer_norm_reference,
    layer_norm,
    layer_norm_reference,
)
from kernels.rms_norm import add_rms_norm, add_rms_norm_reference, rms_norm, rms_norm_reference

WIDTHS = (768, 1024, 1280, 1600)  # of GPT-2's four sizes
LAYER_EPS, RMS_EPS = 1e-5, 1e-6
MOST_CHECKED_ROWS = 4096


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, weight.shape, weight, bias, LAYER_EPS)


def _add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    total = x + residual
    return _layer_norm(total, weight, bias), total


def _rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + RMS_EPS)).to(x.dtype) * weight


def _add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    total = x + residual
    return _rms_norm(total, weight), total


def _fused_rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, RMS_EPS)


def _add_fused_rms_norm(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    total = x + residual
    return _fused_rms_norm(total, weight), total


def _liger_layer_norm(ops: Any) -> Function:
    apply = ops.LigerLayerNormFunction.apply
    return lambda x, weight, bias: apply(x, weight, bias, LAYER_EPS)


def _liger_rms_norm(ops: Any) -> Function:
    apply, options = ops.LigerRMSNormFunction.apply, (RMS_EPS, 0.0, "llama", False)
    return lambda x, weight: apply(x, weight, *options)


def _liger_add_rms_norm(ops: Any) -> Function:
    apply, options = ops.LigerFusedAddRMSNormFunction.apply, (RMS_EPS, 0.0, "llama", False)
    return lambda x, residual, weight: apply(x, residual, weight, *options)


@dataclass(frozen=True)
class _Operator:
    """Implementations of one operator; `values` must move over N C, (forward, backward)."""

    values: tuple[int, int]
    ours: Function
    reference: Function
    eager: Function
    fused: Function | None = None
    liger: Callable[[Any], Function] | None = None


OPERATORS = {
    "layer_norm": _Operator(
        (2, 3), layer_norm, layer_norm_reference, _layer_norm, liger=_liger_layer_norm
    ),
    "rms_norm": _Operator(
        (2, 3), rms_norm, rms_norm_reference, _rms_norm, _fused_rms_norm, _liger_rms_norm
    ),
    "add_layer_norm": _Operator(
        (4, 4), add_layer_norm, add_layer_norm_reference, _add_layer_norm
    ),
    "add_rms_norm": _Operator(
        (4, 4), add_rms_norm, add_rms_norm_reference, _add_rms_norm, _add_fused_rms_norm,
        _liger_add_rms_norm,
    ),
}  # fmt: skip


def cases(setting: Setting) -> list[Case]:
    if setting.smoke:
        shapes = [(op, 64, 768, 1) for op in OPERATORS]
    elif not setting.on_gpu:
        shapes = [(op, 4096, width, 1) for width in (768, 1600) for op in OPERATORS]
    elif setting.profile == "gpu":
        shapes = [(op, 16384, 768, 0) for op in ("add_layer_norm", "layer_norm")]
        shapes += [(op, 16384, 768, 1) for op in ("add_rms_norm", "rms_norm")]
        shapes += [("add_layer_norm", 16384, width, 1) for width in WIDTHS[1:]]
        shapes += [("add_layer_norm", rows, 768, 2) for rows in (8192, 65536)]
    else:
        rows_of = (8192, 16384, 65536)
        shapes = [(op, rows, width, 1) for rows in rows_of for width in WIDTHS for op in OPERATORS]
    return [
        _case(setting, op, rows, width, which, priority)
        for op, rows, width, priority in shapes
        for which in ("forward", "backward")
    ]


def bench_norms(case: Case, variant: str, measure: Measure) -> None:
    measure(case, variant)


def _case(setting: Setting, op: str, rows: int, width: int, which: str, priority: int) -> Case:
    def inputs(rows: int = rows) -> Inputs:
        def random(*shape: int) -> Tensor:
            return torch.randn(shape, device=setting.device, dtype=setting.dtype)

        made = {"x": random(rows, width)}
        if op.startswith("add"):
            made["residual"] = random(rows, width)
        made["weight"] = 1 + 0.1 * random(width)
        if op.endswith("layer_norm"):
            made["bias"] = 0.1 * random(width)
        return {name: tensor.requires_grad_() for name, tensor in made.items()}

    operator = OPERATORS[op]

    def contenders() -> Sequence[Contender]:
        headline = width == 768 and rows <= 16384
        compiles = not setting.smoke or (op, which) == ("layer_norm", "forward")
        found = [ours(setting, operator.ours, compile_too=headline)]
        found += eager_and_compiled(operator.eager, compile=compiles)
        if operator.fused:
            found.append(Contender("F.rms_norm", operator.fused))
        if operator.liger:
            found.append(liger(setting, operator.liger))
        return found

    values = operator.values[which == "backward"]
    moved = values * rows * width * setting.dtype.itemsize
    return operator_case(
        "norms",
        {"op": op, "N": rows, "C": width, "pass": which, "dtype": setting.dtype_name},
        contenders,
        reference=operator.reference,
        inputs=inputs,
        check_inputs=(lambda: inputs(MOST_CHECKED_ROWS)) if rows > MOST_CHECKED_ROWS else None,
        per_second={"gbps": moved / 1e9},
        three_ways=True,
        priority=priority,
    )
