"""Stress cases of cross_entropy and linear_cross_entropy."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kernels.cross_entropy import cross_entropy, cross_entropy_reference
from kernels.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_reference
from tests.campaigns.stress.case import Case, beyond, rows_do_not_touch
from tests.campaigns.stress.draw import Draw

# From logits of this size on, log-sum-exp loses digits of log V in float64 too, and its derivative
# in PyTorch with them: the reference is not exact any more.
INEXACT = 2.0**40
Values = dict[str, Any]


def _options(draw: Draw, width: int) -> Values:
    """Draw keyword arguments that both losses take."""
    vocab_size = draw.size(width) if draw.chance(1 / 2) else width
    return {
        "ignore_index": draw.choose(-100, -100, -1, 2**40, vocab_size - 1),
        "label_smoothing": draw.choose(0.0, 0.0, 0.1, 0.9),
        "z_loss": draw.choose(0.0, 0.0, 1e-4, 1e-2, 1.0),
        "vocab_size": vocab_size,
    }


def _targets(draw: Draw, shape: tuple[int, ...], options: Values) -> Tensor:
    targets = draw.integers(0, options["vocab_size"], shape)
    share = 1.0 if draw.chance(1 / 20) else draw.choose(0.0, 0.25)
    ignored = draw.uniform(*shape) < share
    return targets.where(~ignored, options["ignore_index"])


def _upstream(draw: Draw) -> Tensor:
    """Draw the gradient of the loss; 1 takes a path of its own."""
    factor = 0.0 if draw.chance(1 / 20) else draw.choose(1.0, 1.0, -3.0, 0.25, 2.0**16, 1e-6)
    return draw.memory.place(torch.tensor(factor), (), 0, "the upstream gradient")


def _cross_entropy(draw: Draw) -> Case:
    width = 50257 if draw.chance(1 / 40) else draw.size(5000)
    shape = draw.rows(10000, max(width, 400))
    options = _options(draw, width)
    targets = _targets(draw, shape, options)
    dtype = draw.dtype()
    logits = draw.values((*shape, width), dtype)
    counted = targets != options["ignore_index"]
    if options["label_smoothing"] == 0 and draw.chance(1 / 4):  # classes that are ruled out
        places = torch.arange(width) == targets[..., None]
        logits[(draw.uniform(*logits.shape) < draw.choose(0.1, 0.9)) & ~places] = -math.inf
    if draw.chance(1 / 2):  # what takes no part may be anything
        logits[..., options["vocab_size"] :] = math.nan
        logits[~counted] = math.nan
    inputs = draw.inputs({"logits": logits})
    inputs["targets"] = draw.place(targets, "targets")
    inplace = draw.chance(1 / 3)
    row, offset = width + draw.choose(0, 0, 1, 8), draw.choose(0, 0, 1, 3)
    strides = [row * math.prod(shape[i + 1 :]) for i in range(len(shape))] + [1]

    def kernel(logits: Tensor, targets: Tensor) -> Tensor:
        if inplace:
            zeros = torch.zeros_like(logits)
            room = draw.memory.place(zeros, strides, offset, "logits", kept=False)
            logits = room.copy_(logits)
        return cross_entropy(logits, targets, **options, inplace=inplace)

    def reference(logits: Tensor, targets: Tensor) -> Tensor:
        ignored = (targets == options["ignore_index"])[..., None]
        return cross_entropy_reference(logits.masked_fill(ignored, 0), targets, **options)

    upstream = _upstream(draw)
    small = {
        "kernels.cross_entropy.SHORT_THREADS": 64 if draw.on_gpu else 32,  # a warp of any GPU
        "kernels.cross_entropy.SMOOTHED_LOADS": 4,
    }
    return Case(
        draw.memory, kernel, reference, inputs, [upstream],
        _cancelled(inputs, upstream, options), small if draw.chance(1 / 2) else {},
        rows_do_not_touch(draw, inputs, ["logits"], "row"),
    )  # fmt: skip


def _sizes(logits: Tensor, targets: Tensor, options: Values) -> tuple[Tensor, Tensor]:
    """Compute the size of the loss of rows that count, and of the factor of each row's p.

    The loss: log sum exp(x - max), max - x_t, z-loss and, with smoothing, max and mean logit. Each
    of n rows has about 4 roundings of that size, and their sum, whose order is free, up to n.
    """
    x, smoothing, z_loss = logits, options["label_smoothing"], options["z_loss"]
    lse, top = x.logsumexp(-1), x.amax(-1)
    x_target = x.gather(-1, targets[:, None])[:, 0]
    loss = lse - top + (1 - smoothing) * (top - x_target) + 2 * z_loss * lse.square()
    if smoothing > 0:
        loss += smoothing * (top.abs() + x.abs().mean(-1)) + beyond(x.abs().sum(-1, True))[:, 0]
    return (4 + len(x)) * loss.sum() / max(1, len(x)), 1 + 2 * z_loss * lse.abs()


def _cancelled(inputs: Values, upstream: Tensor, options: Values) -> dict[str, Tensor]:
    """Compute the magnitudes of what cancels.

    p - onehot is a difference of numbers up to 1, times the factor of its row. The gradient that is
    kept until the backward is that of the sum of the losses, which may overflow.
    """
    logits, targets = inputs["logits"].detach(), inputs["targets"]
    counted = targets != options["ignore_index"]
    x = logits[counted][:, : options["vocab_size"]].double()
    loss, weigh = _sizes(x, targets[counted], options)
    weigh += beyond(weigh[:, None], torch.finfo(logits.dtype).max / 4)[:, 0]
    weigh += beyond(x.nan_to_num(neginf=0).abs(), INEXACT)[:, 0]
    dlogits = torch.zeros(logits.shape, dtype=torch.float64, device=logits.device)
    dlogits[counted] = weigh[:, None].expand(-1, logits.shape[-1])
    return {"out": loss, "dlogits": abs(float(upstream)) / max(1, len(x)) * dlogits}


def _linear_cross_entropy(draw: Draw) -> Case:
    c, v = draw.size(300), draw.size(3000)
    n = math.prod(draw.rows(10000, max(c, v, 400)))
    options = _options(draw, v)
    dtype = draw.dtype()
    inputs = draw.inputs({"x": draw.values((n, c), dtype), "weight": draw.values((v, c), dtype)})
    inputs["targets"] = draw.place(_targets(draw, (n,), options), "targets")
    row_bytes = -(-v * dtype.itemsize // 128) * 128
    chunk_bytes = draw.choose(1, row_bytes * draw.size(max(1, n)), 400 * 2**20)
    upstream = _upstream(draw)
    return Case(
        draw.memory,
        partial(linear_cross_entropy, **options, chunk_bytes=chunk_bytes),
        partial(linear_cross_entropy_reference, **options),
        inputs, [upstream], _linear_cancelled(inputs, upstream, options),
    )  # fmt: skip


def _linear_cancelled(inputs: Values, upstream: Tensor, options: Values) -> dict[str, Tensor]:
    """Compute the magnitudes of what cancels, as for given logits.

    The logits here have errors of the size of |x| |W|^T, which p inherits.

    dx and dW of the sum of the losses are multiplied by dloss / n last. Until then a product below
    the smallest normal number has the roundings of that number, and what is too large overflows;
    dx, which is kept in the dtype of x, has those of the smallest normal number of that dtype.
    """
    counted = inputs["targets"] != options["ignore_index"]
    targets = inputs["targets"][counted]
    x = inputs["x"].detach().double()
    weight = inputs["weight"].detach().double()[: options["vocab_size"]]
    logits, sizes = x[counted] @ weight.T, x[counted].abs() @ weight.abs().T
    loss, weigh = _sizes(logits, targets, options)
    loss += sizes.sum() / max(1, len(sizes))
    d = logits.softmax(-1) * (1 + sizes) + beyond(sizes, INEXACT)
    d += torch.nn.functional.one_hot(targets, len(weight)) + 1 / len(weight)
    d *= weigh[:, None]
    factor = abs(float(upstream)) / max(1, len(d))
    tiny = torch.finfo(torch.float32).smallest_normal
    kept = torch.finfo(inputs["x"].dtype)
    dx = torch.zeros_like(x)
    dx[counted] = d @ weight.abs() + tiny * len(weight)
    dx[counted] += kept.smallest_normal * kept.eps / torch.finfo(torch.float32).eps
    dx += beyond(dx, kept.max / 4)
    dweight = torch.zeros(inputs["weight"].shape, dtype=torch.float64, device=x.device)
    dweight[: len(weight)] = d.T @ x[counted].abs() + tiny * len(d)
    return {"out": loss, "dx": factor * dx, "dweight": factor * dweight}


OPERATORS = {"cross_entropy": _cross_entropy, "linear_cross_entropy": _linear_cross_entropy}
