"""Stress cases of gelu_tanh, swiglu and swiglu_packed."""

import math
from typing import Any

import torch
from torch import Tensor

from kernels.gelu import gelu_tanh, gelu_tanh_reference
from kernels.swiglu import swiglu, swiglu_packed, swiglu_reference
from tests.campaigns.stress.case import FEW_PROGRAMS, Case, rows_do_not_touch
from tests.campaigns.stress.draw import Draw


def _shape(draw: Draw, tensors: int) -> tuple[int, ...]:
    width = 0 if draw.chance(1 / 60) else draw.size(7000)
    return (*draw.rows(30000, tensors * max(1, width)), width)


def _gelu(draw: Draw) -> Case:
    shape, dtype = _shape(draw, 1), draw.dtype()
    values = {"x": draw.values(shape, dtype)}
    if draw.chance(2 / 3):
        values["bias"] = draw.values(shape[-1:], draw.dtype())
    inputs = draw.inputs(values)
    upstream = draw.upstream(shape, dtype)
    return Case(
        draw.memory, gelu_tanh, gelu_tanh_reference, inputs, [upstream],
        _gelu_cancelled(inputs, upstream), FEW_PROGRAMS if draw.chance(3 / 4) else {},
        rows_do_not_touch(draw, inputs, ["x"], "element"),
    )  # fmt: skip


def _gelu_cancelled(inputs: dict[str, Any], dy: Tensor) -> dict[str, Tensor]:
    """Compute the magnitudes of what cancels: the terms of dx have opposite signs left of zero.

    dbias is their sum over N rows, whose order is free: up to N roundings of the size of its terms
    together.
    """
    z = inputs["x"].detach().double()
    if "bias" in inputs:
        z = z + inputs["bias"].detach().double()
    k, c = math.sqrt(2 / math.pi), 0.044715
    s = torch.sigmoid(2 * k * (z + c * z**3))
    slope = s + z.abs() * s * (1 - s) * 2 * k * (1 + 3 * c * z.square())
    dx = (dy.double() * slope).abs()
    rows = dx.reshape(-1, dx.shape[-1]) if dx.numel() else dx.new_zeros(0, dx.shape[-1])
    return {"dx": dx, "dbias": len(rows) * rows.sum(0)}


def _swiglu(draw: Draw) -> Case:
    shape, dtype = _shape(draw, 2), draw.dtype()
    names = ["gate", "up"]
    values = {name: draw.values(shape, dtype) for name in names}
    if draw.chance(1 / 4):  # views of one projection
        both = draw.place(torch.cat([*values.values()], -1), "gate and up")
        parts = zip(names, both.chunk(2, -1), strict=True)
        inputs: dict[str, Any] = {name: draw.ask(x) for name, x in parts}
    else:
        inputs = draw.inputs(values)
    upstream = draw.upstream(shape, dtype)
    cancelled = {"dgate": _dgate(inputs["gate"], inputs["up"], upstream)}
    return Case(
        draw.memory, swiglu, swiglu_reference, inputs, [upstream], cancelled,
        also=rows_do_not_touch(draw, inputs, names, "element"),
    )  # fmt: skip


def _swiglu_packed(draw: Draw) -> Case:
    *leading, width = _shape(draw, 2)
    dtype = draw.dtype()
    halves = [draw.values((*leading, width), dtype) for _ in range(2)]
    inputs = draw.inputs({"gate_up": torch.cat(halves, -1)})
    upstream = draw.upstream((*leading, width), dtype)
    gate, up = inputs["gate_up"].chunk(2, -1)
    dgate = _dgate(gate, up, upstream)
    return Case(
        draw.memory, swiglu_packed, lambda gate_up: swiglu_reference(*gate_up.chunk(2, -1)),
        inputs, [upstream], {"dgate_up": torch.cat([dgate, torch.zeros_like(dgate)], -1)},
    )  # fmt: skip


def _dgate(gate: Tensor, up: Tensor, dy: Tensor) -> Tensor:
    """Compute the magnitudes of what cancels in dgate.

    1 + gate (1 - s) vanishes near gate = -1.28, and 1 - s is itself a difference.
    """
    gate, up = gate.detach().double(), up.detach().double()
    s = torch.sigmoid(gate)
    return (dy.double() * up * s).abs() * (1 + gate.abs() * (1 - s))


OPERATORS = {"gelu_tanh": _gelu, "swiglu": _swiglu, "swiglu_packed": _swiglu_packed}
