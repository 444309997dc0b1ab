"""The error budget: how wrong a kernel may be, with no tolerance chosen by hand.

Each output, and the gradient of each input that requires one, is computed three times: by the
kernel, by a reference in plain PyTorch in the same dtype ("plain"), and by that reference in
float64 ("exact"). It is right if

    |kernel - exact|  <=  2 * (|plain - exact| + |rounding|)

where |.| is the length (the 2-norm) of the quantity, and in dtypes of 16 bits its largest element
too. The rounding of an element is half the gap between numbers of the dtype at its size. So a
kernel may lose twice what plain PyTorch loses, plus one rounding; that holds at any scale of the
data. The largest error of float32 is no measure: it is that of a few sums that nearly cancel, in a
kernel by another order than in PyTorch, and over seeds it varies eightfold where the length varies
by a fifth. But among the roundings of 16 bits a single wrong element hides from the length.

Few elements can be exact by luck. So if the error of plain PyTorch does not allow that of a kernel,
it is measured again, up to `SAMPLES` times, on copies in which every tensor is multiplied by a
number below 1, and the largest counts: the same terms cancel, but roundings fall differently.
`python -m tests.campaigns budget` counts how often kernels that are right leave their budget.

`compare` asserts it for one kernel. `Referee` measures several implementations against one
reference, and `judge` a single tensor that was computed elsewhere.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Tensor | tuple[Tensor, ...]]
Upstream = Sequence[Tensor | None]
SAMPLES = 16
"""How often the error of plain PyTorch is measured before a kernel is found to be worse."""


@dataclass(frozen=True)
class Quantity:
    """An output or gradient: its error, and the error that the budget allows."""

    name: str
    error: float
    allowed: float
    size: float = 0.0
    """The length, or the largest magnitude, of the exact value."""

    @property
    def within(self) -> bool:
        """True if the budget is kept. An error of NaN does not keep it."""
        return self.error <= self.allowed

    @property
    def share(self) -> float:
        """The error over the allowed error; 0 if both are 0."""
        return self.error / self.allowed if self.allowed else self.error

    def __str__(self) -> str:
        return f"{self.name}: error {self.error:.3e}, allowed {self.allowed:.3e}"


def compare(
    kernel: Function, reference: Function, inputs: Mapping[str, Any], **options: Any
) -> dict[str, Quantity]:
    """Assert that the outputs and every gradient of `kernel` keep within the error budget.

    Args:
        kernel: the implementation under test.
        reference, inputs, options: as in `Referee`.

    Returns:
        The quantities by name: `out` (or `out0`, `out1`...), then `d<input>`.

    Raises:
        AssertionError: an error exceeds its budget, or a name or shape differs.
    """
    found = Referee(reference, inputs, **options).judge(kernel)
    failures = [str(quantity) for quantity in found.values() if not quantity.within]
    assert not failures, "; ".join(failures)
    return found


def judge(name: str, got: Tensor, plain: Tensor, exact: Tensor) -> Quantity:
    """Measure one tensor against the plain result, which has its dtype, and the exact one.

    All are of one shape. The error of plain PyTorch is measured this once.
    """
    budget = _Budget(plain, exact)
    budget.measure(plain, exact)
    return budget.quantity(name, got)


class Referee:
    """Measure implementations of one function, on the same inputs, against its reference.

    All functions take `inputs` as keyword arguments and return a tensor or a tuple of tensors. An
    implementation is given the very tensors (strides, storage and all); the reference is given
    copies, in their dtype and in float64, and is computed once. Whatever is not a floating-point
    tensor is given to all of them as it is.

    Args:
        reference: plain PyTorch that computes in the dtype it is given.
        inputs: argument name -> value. Gradients are compared for the tensors that require one.
        upstream: the gradient of each output, in any layout; None for an output whose gradient is
            not propagated. By default they are drawn from a normal distribution.
        gradients: compare gradients too, not only outputs.
        cancelled: name of a quantity -> magnitude of the float32 numbers that the kernel subtracts
            from each other on the way, where plain PyTorch computes in another order; one for each
            element, or one for the whole. One float32 rounding at that magnitude is allowed on top.
            Needed where the difference can be exactly zero.
        in_range_only: do not compare elements that leave the range of their dtype: where the plain
            or the exact result is not finite, or where `cancelled` is within a factor of 4 of the
            largest float32, so that the order of a sum decides whether it overflows. An infinity
            computed by the kernel counts as the largest number of its dtype.
    """

    def __init__(
        self,
        reference: Function,
        inputs: Mapping[str, Any],
        *,
        upstream: Upstream | None = None,
        gradients: bool = True,
        cancelled: Mapping[str, float | Tensor] | None = None,
        in_range_only: bool = False,
    ) -> None:
        self._reference, self._inputs = reference, inputs
        self._upstream, self._gradients = upstream, gradients
        self._cancelled, self._in_range_only = cancelled or {}, in_range_only
        self._budgets: dict[str, _Budget] = {}
        self._samples = 0

    def judge(self, function: Function) -> dict[str, Quantity]:
        """Run an implementation and measure each of its outputs and gradients.

        Returns:
            The quantities by name: `out` (or `out0`, `out1`...), then `d<input>`.

        Raises:
            AssertionError: a name or shape differs from the reference's.
        """
        got, self._upstream = _compute(function, self._inputs, self._upstream, self._gradients)
        if not self._budgets:
            self._sample()
        names = [*self._budgets]
        assert got.keys() == self._budgets.keys(), f"got {[*got]}, the reference gives {names}"
        while True:
            found = {
                name: budget.quantity(name, got[name]) for name, budget in self._budgets.items()
            }
            if self._samples == SAMPLES or all(quantity.within for quantity in found.values()):
                return found
            self._sample()

    def _sample(self) -> None:
        """Measure the error of plain PyTorch: first on the inputs themselves."""

        def reference(dtype: torch.dtype | None) -> dict[str, Tensor]:
            copies = {
                name: _copy(_scaled(value, self._samples, number), dtype)
                for number, (name, value) in enumerate(self._inputs.items())
            }
            upstream = [_scaled(x, self._samples, ~i) for i, x in enumerate(self._upstream or ())]
            return _compute(self._reference, copies, upstream, self._gradients)[0]

        plain, exact = reference(None), reference(torch.float64)
        for name in exact:
            if name not in self._budgets:
                self._budgets[name] = _Budget(
                    plain[name],
                    exact[name],
                    self._cancelled.get(name, 0.0),
                    in_range_only=self._in_range_only,
                )
            self._budgets[name].measure(plain[name], exact[name])
        self._samples += 1


class _Budget:
    """The exact value of a quantity, and the errors that are allowed; arguments as in `Referee`."""

    def __init__(
        self,
        plain: Tensor,
        exact: Tensor,
        cancelled: float | Tensor = 0.0,
        *,
        in_range_only: bool = False,
    ) -> None:
        self.exact, self.in_range_only = exact, in_range_only
        size = torch.as_tensor(cancelled, device=exact.device)
        self.compared: Any = ...
        if in_range_only:
            in_range = size < torch.finfo(torch.float32).max / 4
            self.compared = in_range & plain.isfinite() & exact.isfinite()
        self.norms = {"length": 2.0}
        if torch.finfo(plain.dtype).bits < 32:
            self.norms["largest element"] = math.inf
        self.sizes = self._sizes(exact)
        rounding = self._sizes(_rounding(plain.dtype, exact))
        subtracted = self._sizes(_rounding(torch.float32, size))
        self.roundings = {norm: rounding[norm] + subtracted[norm] for norm in self.norms}
        self.plain_errors = dict.fromkeys(self.norms, 0.0)

    def _sizes(self, x: Tensor) -> dict[str, float]:
        """The norms of those elements of a tensor that are compared."""
        compared = x.detach().double()[self.compared if x.shape == self.exact.shape else ...]
        return {
            name: float(torch.linalg.vector_norm(compared, order)) if compared.numel() else 0.0
            for name, order in self.norms.items()
        }

    def measure(self, plain: Tensor, exact: Tensor) -> None:
        """Let the error of plain PyTorch count, where it is larger than the last."""
        for norm, error in self._sizes(plain.double() - exact).items():
            self.plain_errors[norm] = max(self.plain_errors[norm], error)

    def quantity(self, name: str, got: Tensor) -> Quantity:
        """The error by that norm in which it takes the larger share of the budget."""
        assert got.shape == self.exact.shape, (
            f"{name}: shape {tuple(got.shape)}, the reference gives {tuple(self.exact.shape)}"
        )
        if self.in_range_only:  # an infinity counts as the largest number
            got = got.clamp(torch.finfo(got.dtype).min, torch.finfo(got.dtype).max)
        found = [
            Quantity(
                f"{name} ({norm})",
                error,
                2 * (self.plain_errors[norm] + self.roundings[norm]),
                self.sizes[norm],
            )
            for norm, error in self._sizes(got.double() - self.exact).items()
        ]
        return max(found, key=lambda quantity: (not quantity.within, quantity.share))


def _rounding(dtype: torch.dtype, x: Tensor) -> Tensor:
    """The largest error of rounding each number to `dtype`."""
    info = torch.finfo(dtype)
    # Numbers below the normal ones are evenly spaced; zero is exact.
    size = x.double().abs().clamp(min=info.smallest_normal).where(x != 0, 0.0)
    return size * info.eps / 2


def _scaled(value: Any, sample: int, number: int) -> Any:
    """The value itself in sample 0; in others, a floating-point tensor times 0.7 to 1."""
    if sample == 0 or not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    # Multiples of the golden ratio: no two samples, and no two tensors of one, are alike.
    factor = 1 - 0.3 * ((sample * 0.6180339887 + number * 0.7548776662) % 1)
    return (value.detach() * factor).requires_grad_(value.requires_grad)


def _copy(value: Any, dtype: torch.dtype | None) -> Any:
    """A contiguous copy of a floating-point tensor, in `dtype` if one is given."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    copy = value.detach().clone(memory_format=torch.contiguous_format).to(dtype or value.dtype)
    return copy.requires_grad_(value.requires_grad)


def quantities(
    function: Function, inputs: Mapping[str, Any], upstream: Upstream | None = None
) -> dict[str, Tensor]:
    """Compute the outputs of `function`, and the gradients of the inputs that require one, by name.

    Args, and the names of what is returned: as in `Referee`.
    """
    return _compute(function, inputs, upstream, True)[0]


def _compute(
    function: Function, inputs: Mapping[str, Any], upstream: Upstream | None, gradients: bool
) -> tuple[dict[str, Tensor], Upstream]:
    """The quantities, and the gradients of the outputs that were used."""
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
        if gradients and isinstance(leaf, Tensor) and leaf.requires_grad
    }
    pulled = [
        (out, grad if grad.dtype == out.dtype else grad.to(out.dtype))
        for out, grad in zip(outputs, upstream, strict=True)
        if grad is not None and out.requires_grad
    ]
    if wanted and pulled:
        values = torch.autograd.grad(
            [out for out, _ in pulled], list(wanted.values()), [grad for _, grad in pulled]
        )
        found |= {f"d{name}": value for name, value in zip(wanted, values, strict=True)}
    return found, upstream
