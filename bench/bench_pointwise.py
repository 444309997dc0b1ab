"""Norms and activations, forward and backward: the operators that work row by row or by value.

    pytest bench/bench_pointwise.py --benchmark-only

LayerNorm and RMSNorm, alone and fused with the residual addition ("norms" in the results), and the
elementwise half of the MLPs, GELU with its bias and SwiGLU ("mlp").

Variants: ours (triton); PyTorch as one writes it (eager: RMSNorm written out, as in LLaMA's code;
the addition as an operator of its own); the same under torch.compile; `F.rms_norm`; Liger-Kernel,
which has no residual + LayerNorm and no GELU with a bias. Liger's RMSNorm may not overwrite the
gradient that comes in (`in_place=False`), as all variants share it; its SwiGLU of two tensors
writes its gradients over gate and up, and is given new ones each time, untimed.

Rates count the bytes that must move, in tensors of the size of the output. Norms: forward 2 (read
x, write y), with the addition 4; backward 3 (read dy and x, write dx), with the addition 4; weights
and statistics are left out. GELU: forward 2, backward 3, as a norm. SwiGLU: forward 3 (read gate
and up, write y), backward 5 (read dy, gate and up, write both gradients).
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
from kernels.gelu import gelu_tanh, gelu_tanh_reference
from kernels.layer_norm import (
    add_layer_norm,
    add_layer_norm_reference,
    layer_norm,
    layer_norm_reference,
)
from kernels.rms_norm import add_rms_norm, add_rms_norm_reference, rms_norm, rms_norm_reference
from kernels.swiglu import swiglu, swiglu_packed, swiglu_reference

WIDTHS = (768, 1024, 1280, 1600)  # of GPT-2's four sizes
# Feed-forward widths by width of the model: 4 C for GELU; for SwiGLU, which has three matrices, 2/3
# of that, in whole multiples of 64.
GELU_WIDTHS = {768: 3072, 1600: 6400}
SWIGLU_WIDTHS = {768: 2048, 1600: 4288}
LAYER_EPS, RMS_EPS = 1e-5, 1e-6
LIGER_RMS_OPTIONS = (RMS_EPS, 0.0, "llama", False)
MOST_CHECKED_ROWS = 4096


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, weight.shape, weight, bias, LAYER_EPS)


def _rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + RMS_EPS)).to(x.dtype) * weight


def _fused_rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, RMS_EPS)


def _after_addition(norm: Function) -> Function:
    def add_norm(x: Tensor, residual: Tensor, **parameters: Tensor) -> tuple[Tensor, Tensor]:
        total = x + residual
        return norm(total, **parameters), total

    return add_norm


def _gelu(x: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(x + bias, approximate="tanh")


def _swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def _of_packed(function: Function) -> Function:
    return lambda gate_up: function(*gate_up.chunk(2, -1))


def _liger(name: str, *options: object) -> Callable[[Any], Function]:
    """Call `liger_kernel.ops.<name>` with the inputs in order, then the options."""

    def make(ops: Any) -> Function:
        apply = getattr(ops, name).apply
        return lambda **inputs: apply(*inputs.values(), *options)

    return make


@dataclass(frozen=True)
class _Operator:
    """Implementations of one operator; `moved` tensors must move (forward, backward)."""

    inputs: tuple[str, ...]
    moved: tuple[int, int]
    ours: Function
    reference: Function
    eager: Function
    fused: Function | None = None
    liger: Callable[[Any], Function] | None = None
    liger_overwrites: tuple[str, ...] = ()


NORMS = {
    "layer_norm": _Operator(
        ("x", "weight", "bias"), (2, 3), layer_norm, layer_norm_reference, _layer_norm,
        liger=_liger("LigerLayerNormFunction", LAYER_EPS),
    ),
    "rms_norm": _Operator(
        ("x", "weight"), (2, 3), rms_norm, rms_norm_reference, _rms_norm, _fused_rms_norm,
        _liger("LigerRMSNormFunction", *LIGER_RMS_OPTIONS),
    ),
    "add_layer_norm": _Operator(
        ("x", "residual", "weight", "bias"), (4, 4), add_layer_norm,
        add_layer_norm_reference, _after_addition(_layer_norm),
    ),
    "add_rms_norm": _Operator(
        ("x", "residual", "weight"), (4, 4), add_rms_norm, add_rms_norm_reference,
        _after_addition(_rms_norm), _after_addition(_fused_rms_norm),
        _liger("LigerFusedAddRMSNormFunction", *LIGER_RMS_OPTIONS),
    ),
}  # fmt: skip
ACTIVATIONS = {
    "gelu_tanh": _Operator(("x", "bias"), (2, 3), gelu_tanh, gelu_tanh_reference, _gelu),
    "swiglu": _Operator(
        ("gate", "up"), (3, 5), swiglu, swiglu_reference, _swiglu,
        liger=_liger("LigerSiLUMulFunction"), liger_overwrites=("gate", "up"),
    ),
    "swiglu_packed": _Operator(
        ("gate_up",), (3, 5), swiglu_packed, _of_packed(swiglu_reference),
        _of_packed(_swiglu), liger=_liger("LigerFusedGateUpSiLUMulFunction"),
    ),
}  # fmt: skip


def cases(setting: Setting) -> list[Case]:
    everything = setting.on_gpu and setting.profile == "full"
    if setting.smoke:
        shapes = [(op, 64, 768, 1) for op in NORMS]
    elif not setting.on_gpu:
        shapes = [(op, 4096, width, 1) for width in (768, 1600) for op in NORMS]
    elif everything:
        rows_of = (8192, 16384, 65536)
        shapes = [(op, rows, width, 1) for rows in rows_of for width in WIDTHS for op in NORMS]
    else:
        shapes = [(op, 16384, 768, 0) for op in ("add_layer_norm", "layer_norm")]
        shapes += [(op, 16384, 768, 1) for op in ("add_rms_norm", "rms_norm")]
        shapes += [("add_layer_norm", 16384, width, 1) for width in WIDTHS[1:]]
        shapes += [("add_layer_norm", rows, 768, 2) for rows in (8192, 65536)]
    rows = 64 if setting.smoke else 16384 if setting.on_gpu else 4096
    for C in (768, 1600) if everything else (768,):
        shapes.append(("gelu_tanh", rows, GELU_WIDTHS[C], 0))
        shapes += [(op, rows, SWIGLU_WIDTHS[C], 1) for op in ("swiglu", "swiglu_packed")]
    return [_case(setting, *shape, which) for shape in shapes for which in ("forward", "backward")]


def bench_pointwise(case: Case, variant: str, measure: Measure) -> None:
    measure(case, variant)


def _case(setting: Setting, op: str, rows: int, width: int, priority: int, which: str) -> Case:
    is_norm = op in NORMS
    operator = NORMS[op] if is_norm else ACTIVATIONS[op]

    def inputs(rows: int = rows) -> Inputs:
        shapes = {"weight": (width,), "bias": (width,), "gate_up": (rows, 2 * width)}
        made = {}
        for name in operator.inputs:
            shape = shapes.get(name, (rows, width))
            made[name] = torch.randn(shape, device=setting.device, dtype=setting.dtype)
            if is_norm and name in shapes:
                made[name] = (name == "weight") + 0.1 * made[name]
        return {name: tensor.requires_grad_() for name, tensor in made.items()}

    def contenders() -> Sequence[Contender]:
        headline = not is_norm or (width == 768 and rows <= 16384)
        compiles = not setting.smoke or (op in ("layer_norm", "gelu_tanh") and which == "forward")
        found = [ours(setting, operator.ours, compile_too=headline)]
        found += eager_and_compiled(operator.eager, compile=compiles)
        if operator.fused:
            found.append(Contender("F.rms_norm", operator.fused))
        if operator.liger:
            found.append(liger(setting, operator.liger, overwrites=operator.liger_overwrites))
        return found

    moved = operator.moved[which == "backward"] * rows * width * setting.dtype.itemsize
    shape = {"N": rows, "C" if is_norm else "F": width}
    return operator_case(
        "norms" if is_norm else "mlp",
        {"op": op, **shape, "pass": which, "dtype": setting.dtype_name},
        contenders,
        reference=operator.reference,
        inputs=inputs,
        check_inputs=(lambda: inputs(MOST_CHECKED_ROWS)) if rows > MOST_CHECKED_ROWS else None,
        per_second={"gbps": moved / 1e9},
        three_ways=True,
        priority=priority,
    )
