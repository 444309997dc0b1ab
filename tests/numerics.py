"""The error budget: how wrong a kernel may be, with no tolerance chosen by hand.

A quantity is computed three times: by the kernel, by the plain PyTorch reference in the same dtype,
and by the reference in float64. With M the largest magnitude of the exact value and u the unit
roundoff of the quantity's dtype (half the gap from 1 to the next number),

    max |kernel - float64|  <=  2 * (max |plain - float64| + u * M)

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
    cancelled: Mapping[str, float] | None = None,
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
            way, where plain PyTorch takes another way; one float32 rounding at that magnitude is
            allowed on top. Needed where the difference can be exactly zero.

    Returns:
        The quantities by name: `out` (or `out0`, `out1`...), then `d<input>`.
    """
    leaves = {name: _leaf(value, None) for name, value in inputs.items()}
    outputs = _as_tuple(kernel(**leaves))
    if upstream is None:
        upstream = [torch.randn_like(out) if out.requires_grad else None for out in outputs]
    got = _quantities(outputs, leaves, upstream)

    def referee(dtype: torch.dtype | None) -> dict[str, Tensor]:
        copies = {name: _leaf(value, dtype, copy=True) for name, value in inputs.items()}
        return _quantities(_as_tuple(reference(**copies)), copies, upstream)

    plain, exact = referee(None), referee(torch.float64)
    assert got.keys() == exact.keys(), f"gradients differ: {[*got]} against {[*exact]}"
    report = {
        name: judge(name, got[name], plain[name], exact[name], (cancelled or {}).get(name, 0.0))
        for name in got
    }
    failures = [str(quantity) for quantity in report.values() if not quantity.within]
    assert not failures, "; ".join(failures)
    return report


def judge(name: str, got: Tensor, plain: Tensor, exact: Tensor, cancelled: float = 0.0) -> Quantity:
    """The error of `got`, and what it was allowed given the plain result and the exact one."""
    assert got.shape == exact.shape, f"{name}: shape {tuple(got.shape)} != {tuple(exact.shape)}"
    if got.numel() == 0:
        return Quantity(name, 0.0, 0.0)
    rounding = _roundoff(plain.dtype) * float(exact.abs().max())
    rounding += _roundoff(torch.float32) * cancelled
    allowed = 2 * (float((plain.double() - exact).abs().max()) + rounding)
    return Quantity(name, float((got.double() - exact).abs().max()), allowed)


def _roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def _leaf(value: Any, dtype: torch.dtype | None, copy: bool = False) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    leaf = value.detach()
    if copy:
        leaf = leaf.clone(memory_format=torch.contiguous_format).to(dtype or value.dtype)
    return leaf.requires_grad_(value.requires_grad)


def _as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _quantities(
    outputs: tuple[Tensor, ...],
    leaves: Mapping[str, Any],
    upstream: Sequence[Tensor | None],
) -> dict[str, Tensor]:
    """Outputs and gradients by name."""
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
    return found
