"""The elementwise half of the MLPs, forward and backward: GELU with its bias, and SwiGLU.

    pytest bench/bench_mlp.py --benchmark-only

Variants: ours (triton), PyTorch as one writes it (eager), the same under torch.compile, and
Liger-Kernel, which has SwiGLU but no GELU with a bias. The two-tensor SwiGLU of Liger writes its
gradients over gate and up, and is given new ones each time, untimed.

Rates count the bytes that must move, for n values of the output (`kernels/gelu.py`, `swiglu.py`):
GELU forward 2 n (read x, write y), backward 3 n (read dy and x, write dx); SwiGLU forward 3 n (read
gate and up, write y), backward 5 n (read dy, gate and up, write both gradients).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.harness.measure import Case, Measure, Setting
from bench.harness.passes import Contender, Function, Inputs, operator_case
from bench.harness.peers import eager_and_compiled, liger, ours
from kernels.gelu import gelu_tanh, gelu_tanh_reference
from kernels.swiglu import swiglu, swiglu_packed, swiglu_reference

MOST_CHECKED_ROWS = 4096
# Feed-forward widths by width of the model: 4 C for GELU; for SwiGLU, which has three matrices, 2/3
# of that, in whole multiples of 64.
GELU_WIDTHS = {768: 3072, 1600: 6400}
SWIGLU_WIDTHS = {768: 2048, 1600: 4288}


def _gelu(x: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(x + bias, approximate="tanh")


def _swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def _swiglu_packed(gate_up: Tensor) -> Tensor:
    return _swiglu(*gate_up.chunk(2, -1))


def _swiglu_packed_reference(gate_up: Tensor) -> Tensor:
    return swiglu_reference(*gate_up.chunk(2, -1))


def _liger_swiglu(ops: Any) -> Function:
    apply = ops.LigerSiLUMulFunction.apply
    return lambda gate, up: apply(gate, up)


def _liger_swiglu_packed(ops: Any) -> Function:
    apply = ops.LigerFusedGateUpSiLUMulFunction.apply
    return lambda gate_up: apply(gate_up)


# Operator -> ours, reference, eager, and values that must move over those of the output.
OPERATORS: dict[str, tuple[Function, Function, Function, tuple[int, int]]] = {
    "gelu_tanh": (gelu_tanh, gelu_tanh_reference, _gelu, (2, 3)),
    "swiglu": (swiglu, swiglu_reference, _swiglu, (3, 5)),
    "swiglu_packed": (swiglu_packed, _swiglu_packed_reference, _swiglu_packed, (3, 5)),
}


def cases(setting: Setting) -> list[Case]:
    rows = 64 if setting.smoke else 16384 if setting.on_gpu else 4096
    channels = (768, 1600) if setting.on_gpu and setting.profile == "full" else (768,)
    return [
        _case(setting, op, rows, C, which, priority=0 if op == "gelu_tanh" else 1)
        for C in channels
        for op in OPERATORS
        for which in ("forward", "backward")
    ]


def bench_mlp(case: Case, variant: str, measure: Measure) -> None:
    measure(case, variant)


def _case(setting: Setting, op: str, rows: int, C: int, which: str, priority: int) -> Case:
    our_kernel, reference, eager, values = OPERATORS[op]
    width = (GELU_WIDTHS if op == "gelu_tanh" else SWIGLU_WIDTHS)[C]

    def inputs(rows: int = rows) -> Inputs:
        def random(*shape: int) -> Tensor:
            made = torch.randn(shape, device=setting.device, dtype=setting.dtype)
            return made.requires_grad_()

        if op == "gelu_tanh":
            return {"x": random(rows, width), "bias": random(width)}
        if op == "swiglu":
            return {"gate": random(rows, width), "up": random(rows, width)}
        return {"gate_up": random(rows, 2 * width)}

    def contenders() -> Sequence[Contender]:
        compiles = not setting.smoke or (op, which) == ("gelu_tanh", "forward")
        found = [ours(setting, our_kernel, compile_too=True)]
        found += eager_and_compiled(eager, compile=compiles)
        if op == "swiglu":
            found.append(liger(setting, _liger_swiglu, overwrites=("gate", "up")))
        elif op == "swiglu_packed":
            found.append(liger(setting, _liger_swiglu_packed))
        return found

    moved = values[which == "backward"] * rows * width * setting.dtype.itemsize
    return operator_case(
        "mlp",
        {"op": op, "N": rows, "F": width, "pass": which, "dtype": setting.dtype_name},
        contenders,
        reference=reference,
        inputs=inputs,
        check_inputs=(lambda: inputs(MOST_CHECKED_ROWS)) if rows > MOST_CHECKED_ROWS else None,
        per_second={"gbps": moved / 1e9},
        three_ways=True,
        priority=priority,
    )
