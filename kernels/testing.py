"""The error budget: how wrong a kernel may be, with no tolerance chosen by hand.

A quantity is computed three times: by the kernel, by the plain PyTorch reference in the same dtype,
and by the reference in float64. With M the largest magnitude of the exact value, u the unit
roundoff of the quantity's dtype (half the gap from 1 to the next number) and s half the gap between
its smallest numbers, which are subnormal and evenly spaced,

    max |kernel - float64|  <=  2 * (max |plain - float64| + max(u * M, s))

so a kernel may lose twice what plain PyTorch loses, plus one rounding. The rule holds for outputs
and for the gradient of every input that asks for one, at any scale of the data and in any dtype.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Tensor | tuple[Tensor, ...]]


@dataclass(frozen=True)
class Quantity:
    """One output or gradient of a comparison: its error and the error that it was allowed."""

    name: str
    error: float
    allowed: float

    @property
    def within(self) -> bool:
        return self.error <= self.allowed  # False for NaN

    def __str__(self) -> str:
        return f"{self.name}: error {self.error:.3e}, allowed {self.allowed:.3e}"


def compare(
    kernel: Function,
    reference: Function,
    inputs: Mapping[str, Any],
    *,
    upstream: Sequence[Tensor | None] | None = None,
    cancelled: Mapping[str, float | Tensor] | None = None,
    samples: int = 1,
    in_range_only: bool = False,
) -> dict[str, Quantity]:
    """Assert that the outputs and every gradient of `kernel` keep within the error budget.

    Both functions are called with `inputs` as keyword arguments and return a tensor or a tuple of
    tensors. The kernel gets the very tensors (strides, storage and all); the reference gets copies,
    in their dtype and in float64. What is not a floating-point tensor goes to all three as it is.

    Args:
        kernel: what is tested.
        reference: plain PyTorch; computes in the dtype that it is given.
        inputs: argument name -> value. Gradients are compared for the tensors that require one.
        upstream: the gradient of each output, any layout; None for an output whose gradient is not
            propagated. Default: standard normal for each differentiable output.
        cancelled: name -> magnitude of the float32 numbers whose difference the kernel forms on the
            way, where plain PyTorch takes another way, for all or for each of the elements; one
            float32 rounding at that magnitude is allowed on top. Needed where the difference can be
            exactly zero.
        samples: how often the error of plain PyTorch is measured: on the inputs, and if that error
            does not allow the kernel's, on copies in which each tensor is multiplied by a number
            below 1. What cancels still cancels, while roundings fall differently; the largest error
            counts. For quantities of few elements, which PyTorch may get right by luck.
        in_range_only: hold the kernel to nothing where numbers leave the range of their dtype: in
            elements where the plain result or the exact one is not finite, or where `cancelled` is
            within a factor 4 of float32's largest number, so that it depends on the order of a sum
            whether it overflows. And an infinity of the kernel's counts as the largest number.

    Returns:
        The quantities by name: `out` (or `out0`, `out1`...), then `d<input>`.
    """
    got, upstream = _compute(kernel, inputs, upstream)

    def referee(dtype: torch.dtype | None, sample: int = 0) -> dict[str, Tensor]:
        copies = {
            name: _copy(_shrunk(value, sample, place), dtype)
            for place, (name, value) in enumerate(inputs.items())
        }
        pulled = [_shrunk(grad, sample, ~place) for place, grad in enumerate(upstream)]
        return quantities(reference, copies, pulled)

    plain, exact = referee(None), referee(torch.float64)
    assert got.keys() == exact.keys(), f"gradients differ: {[*got]} against {[*exact]}"
    losses = {
        name: _measure(
            got[name], plain[name], exact[name], (cancelled or {}).get(name, 0.0), in_range_only
        )
        for name in got
    }
    for sample in range(samples):
        if sample > 0:
            rough, fine = referee(None, sample), referee(torch.float64, sample)
            for name, loss in losses.items():
                again = _largest(rough[name].double() - fine[name], loss.counted)
                loss.plain = max(loss.plain, again)
        report = {name: loss.quantity(name) for name, loss in losses.items()}
        if all(quantity.within for quantity in report.values()):
            break
    failures = [str(quantity) for quantity in report.values() if not quantity.within]
    assert not failures, "; ".join(failures)
    return report


def judge(name: str, got: Tensor, plain: Tensor, exact: Tensor, cancelled: float = 0.0) -> Quantity:
    """The error of `got`, and what it was allowed given the plain result and the exact one."""
    return _measure(got, plain, exact, cancelled, False).quantity(name)


@dataclass
class _Loss:
    """What is lost against the exact result: by the kernel, by plain PyTorch, by one rounding."""

    kernel: float
    plain: float
    rounding: float
    counted: Any
    """Index of the elements that count."""

    def quantity(self, name: str) -> Quantity:
        return Quantity(name, self.kernel, 2 * (self.plain + self.rounding))


def _measure(
    got: Tensor, plain: Tensor, exact: Tensor, cancelled: float | Tensor, in_range_only: bool
) -> _Loss:
    assert got.shape == exact.shape, f"shape {tuple(got.shape)} != {tuple(exact.shape)}"
    size = torch.as_tensor(cancelled, device=exact.device).expand(exact.shape)
    counted: Any = ...
    if in_range_only:
        counted = size < torch.finfo(torch.float32).max / 4
        counted &= plain.isfinite() & exact.isfinite()
        got = got.clamp(torch.finfo(got.dtype).min, torch.finfo(got.dtype).max)
    rounding = _rounding(plain.dtype, _largest(exact, counted))
    rounding += _rounding(torch.float32, _largest(size, counted))
    lost = _largest(plain.double() - exact, counted)
    return _Loss(_largest(got.double() - exact, counted), lost, rounding, counted)


def _largest(x: Tensor, counted: Any) -> float:
    """The largest magnitude among the elements that count, 0 of nothing."""
    x = x.detach().abs()[counted]
    return float(x.max()) if x.numel() else 0.0


def _rounding(dtype: torch.dtype, magnitude: float) -> float:
    """The largest error of rounding a number of this magnitude to `dtype`."""
    if magnitude == 0:
        return 0.0
    info = torch.finfo(dtype)
    return max(magnitude, info.smallest_normal) * info.eps / 2


def _shrunk(value: Any, sample: int, place: int) -> Any:
    """Sample 0 is the value itself; in others, floating-point tensors are 0.7 to 1 times theirs."""
    if sample == 0 or not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    # Multiples of the golden ratio: no two samples, and no two tensors of one, are alike.
    factor = 1 - 0.3 * ((sample * 0.6180339887 + place * 0.7548776662) % 1)
    return (value.detach() * factor).requires_grad_(value.requires_grad)


def _copy(value: Any, dtype: torch.dtype | None) -> Any:
    """A contiguous copy of a floating-point tensor, in `dtype` if one is given."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    copy = value.detach().clone(memory_format=torch.contiguous_format).to(dtype or value.dtype)
    return copy.requires_grad_(value.requires_grad)


def quantities(
    function: Function, inputs: Mapping[str, Any], upstream: Sequence[Tensor | None] | None = None
) -> dict[str, Tensor]:
    """The outputs of `function`, and the gradients of what requires one, by their names.

    Args, and names of what is returned: as those of `compare`.
    """
    return _compute(function, inputs, upstream)[0]


def _compute(
    function: Function, inputs: Mapping[str, Any], upstream: Sequence[Tensor | None] | None
) -> tuple[dict[str, Tensor], Sequence[Tensor | None]]:
    """`quantities`, and the gradients of the outputs that were used."""
    leaves = {
        name: value.detach().requires_grad_(value.requires_grad)
        if isinstance(value, Tensor) and value.is_floating_point()
        else value
        for name, value in inputs.items()
    }
    result = function(**leaves)
    outputs = result if isinstance(result, tuple) else (result,)
    if upstream is None:
        upstream = [torch.randn_like(out) if out.requires_grad else None for out in outputs]
    names = ["out"] if len(outputs) == 1 else [f"out{i}" for i in range(len(outputs))]
    found = {name: out.detach() for name, out in zip(names, outputs, strict=True)}
    wanted = {
        name: leaf
        for name, leaf in leaves.items()
        if isinstance(leaf, Tensor) and leaf.requires_grad
    }
    pulled = [
        (out, grad if grad.dtype == out.dtype else grad.to(out.dtype))
        for out, grad in zip(outputs, upstream, strict=True)
        if grad is not None and out.requires_grad
    ]
    if wanted and pulled:
        gradients = torch.autograd.grad(
            [out for out, _ in pulled], list(wanted.values()), [grad for _, grad in pulled]
        )
        found |= {f"d{name}": grad for name, grad in zip(wanted, gradients, strict=True)}
    return found, upstream
