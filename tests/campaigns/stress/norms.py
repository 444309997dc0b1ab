"""Stress cases of rms_norm, add_rms_norm, layer_norm and add_layer_norm."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from kernels import layer_norm, rms_norm
from tests.campaigns.stress.case import FEW_PROGRAMS, Case, beyond, rows_do_not_touch
from tests.campaigns.stress.draw import Draw


def _draw(name: str, draw: Draw) -> Case:
    centred, added = "layer" in name, "add" in name
    module = layer_norm if centred else rms_norm
    kernel, plain = getattr(module, name), getattr(module, f"{name}_reference")
    width = draw.choose(9001, 32769, 65536) if draw.chance(1 / 200) else draw.size(5000)
    shape = (*draw.rows(10000, width), width)
    dtypes = {"x": draw.dtype(), "weight": draw.dtype()}
    values = {"x": draw.values(shape, dtypes["x"])}
    if added:
        dtypes["residual"] = draw.dtype()
        values["residual"] = draw.values(shape, dtypes["residual"])
    values["weight"] = draw.values((width,), dtypes["weight"])
    if centred and draw.chance(4 / 5):
        values["bias"] = draw.values((width,), dtypes["weight"])
    inputs: dict[str, Any] = draw.inputs(values)
    if centred:
        inputs.setdefault("bias", None)
    asked = draw.dtype() if draw.chance(1 / 4) else None
    eps = draw.choose(1e-6, 1e-5, 1e-12, 1.0)

    def reference(**given: Any) -> Any:
        exact = given["x"].dtype == torch.float64
        return plain(**given, eps=eps, dtype=None if exact else asked)

    upstream: list[Tensor | None] = [draw.upstream(shape, asked or dtypes["x"])]
    if added:
        around = draw.upstream(shape, dtypes["residual"])
        upstream.append(None if draw.chance(1 / 6) else around)
    spoilt = ["x", "residual"] if added else ["x"]
    return Case(
        draw.memory, partial(kernel, eps=eps, dtype=asked), reference, inputs, upstream,
        _cancelled(inputs, upstream, eps, centred),
        FEW_PROGRAMS if draw.chance(3 / 4) else {},
        rows_do_not_touch(draw, inputs, spoilt, "row"),
    )  # fmt: skip


def _cancelled(inputs, upstream, eps, centred):
    """Compute the magnitudes of what cancels: the equations with every difference made a sum.

    x - mean carries roundings of the size of x and of the mean, so n does of (|x| + |mean|) * rstd,
    called m. dx = rstd (g - mean(g) - n mean(g n)) then has terms of the sizes of |g|, of the mean
    of |g|, and twice m mean(|g| m), once for each n. A sum over N rows, whose order is free, has up
    to N roundings of the size of its terms together.
    """
    x = inputs["x"].detach().double()
    if "residual" in inputs:
        x = x + inputs["residual"].detach().double()
    mean = x.mean(-1, keepdim=True) if centred else torch.zeros_like(x[..., :1])
    rstd = torch.rsqrt((x - mean).square().mean(-1, keepdim=True) + eps)
    m = (x.abs() + mean.abs()) * rstd
    if centred:
        m = m + beyond(x.abs().sum(-1, keepdim=True))
    weight = inputs["weight"].detach().double().abs()
    bias = inputs.get("bias")
    y = m * weight + (0 if bias is None else bias.detach().double().abs())
    dy = upstream[0].double().abs()
    g = dy * weight
    gm = g * m
    shift = g.mean(-1, keepdim=True) if centred else 0
    dx = rstd * (g + shift + 2 * m * gm.mean(-1, keepdim=True))
    dx = dx + beyond(torch.cat([gm, g], -1).sum(-1, keepdim=True))
    if len(upstream) == 2 and upstream[1] is not None:
        dx = dx + upstream[1].double().abs()
    width = x.shape[-1]
    n = x.numel() // width
    return {
        "out0" if "residual" in inputs else "out": y,
        "dx": dx,
        "dresidual": dx,
        "dweight": n * (dy * m).reshape(-1, width).sum(0),
        "dbias": n * dy.reshape(-1, width).sum(0),
    }


NAMES = ("rms_norm", "add_rms_norm", "layer_norm", "add_layer_norm")
OPERATORS = {name: partial(_draw, name) for name in NAMES}
