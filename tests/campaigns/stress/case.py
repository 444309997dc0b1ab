"""Stress cases, and what must hold for them."""

import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from kernels.testing import Function, compare, quantities
from tests.campaigns.stress.draw import Draw
from tests.campaigns.stress.memory import Memory


@dataclass(frozen=True)
class Returning:
    """A stand-in for a function: it returns the value whatever it is given."""

    value: Any

    def __call__(self, *_: Any) -> Any:
        return self.value


nothing_else = Returning(None)  # the default of `Case.also`
# So that each program walks over many tiles.
FEW_PROGRAMS = {"kernels._common.launch._multiprocessors": Returning(1)}


@dataclass(frozen=True)
class Case:
    """Arguments that an operator must take, and what must come out."""

    memory: Memory
    kernel: Function
    reference: Function
    inputs: dict[str, Any]
    upstream: list[Tensor | None]
    cancelled: Mapping[str, Tensor]
    """See `kernels.testing.compare`: magnitudes of the float32 numbers that cancel on the way."""
    # Stand-ins for constants and functions of a launcher, by dotted name.
    patches: dict[str, Any] = field(default_factory=dict)
    also: Callable[["Case"], None] = nothing_else  # asserts anything else that must hold

    def __repr__(self) -> str:
        tensors = {name: x for name, x in self.inputs.items() if isinstance(x, Tensor)}
        tensors |= {f"upstream {i}": x for i, x in enumerate(self.upstream) if x is not None}
        words = [f"{name} {_words(x)}" for name, x in tensors.items()]
        words += [f"{name} = {x}" for name, x in self.patches.items()]
        return "; ".join(words)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))  # or hypothesis would print every element

    def run(self, inputs: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
        """Return outputs and gradients of the kernel, on other inputs if given."""
        return quantities(self.kernel, self.inputs if inputs is None else inputs, self.upstream)

    def check(self) -> None:
        """Assert that the error budgets are kept and that no other memory is touched."""
        with ExitStack() as stack:
            for name, value in self.patches.items():
                stack.enter_context(patch(name, value))
            # NumPy tells of what the interpreter computes in lanes that nothing stores.
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore", RuntimeWarning)
            with self.memory.watch():
                compare(
                    self.kernel, self.reference, self.inputs, upstream=self.upstream,
                    cancelled=self.cancelled, in_range_only=True,
                )  # fmt: skip
                self.also(self)
            self.memory.check()


def _words(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    return f"{tuple(value.shape)} {value.dtype} strides {value.stride()}".replace("torch.", "")


def twin(x: Tensor) -> Tensor:
    """Return a copy with the strides and the alignment of `x`, to be changed."""
    storage = torch.empty(0, dtype=x.dtype, device=x.device).set_(x.untyped_storage()).clone()
    copy = storage.as_strided(x.shape, x.stride(), x.storage_offset())
    return copy.requires_grad_(x.requires_grad)


def beyond(x: Tensor, limit: float = torch.finfo(torch.float32).max / 4) -> Tensor:
    """Return infinity for rows with a number above the limit, by default near float32's end.

    Other rows get 0. It is added to the magnitudes of what is computed from such a row, for which
    nothing is promised.
    """
    return torch.where(x.amax(-1, keepdim=True) < limit, 0.0, math.inf)


Check = Callable[[Case], None]
Spoil = Callable[[dict[str, Any]], None]


def unspoilt(spoil: Spoil, kept: Callable[[str, Tensor, dict[str, Any]], Any]) -> Check:
    """Return a check that the values which `spoil` writes into the inputs change no bit elsewhere.

    `kept` takes the name of an output or gradient, its value and the spoilt inputs; it returns the
    index of what must stay, or None.
    """

    def check(case: Case) -> None:
        spoilt = {name: twin(x) if isinstance(x, Tensor) else x for name, x in case.inputs.items()}
        with torch.no_grad():
            spoil(spoilt)
        before, after = case.run(), case.run(spoilt)
        for name, was in before.items():
            part = kept(name, was, spoilt)
            if part is not None:
                other = differs(was[part], after[name][part])
                assert not other.any(), f"{name}: {int(other.sum())} elements are spoilt by others"

    return check


def differs(a: Tensor, b: Tensor) -> Tensor:
    """Compare element by element, NaN equal to NaN and 0 to -0."""
    return ~((a == b) | (a.isnan() & b.isnan()))


def rows_do_not_touch(draw: Draw, inputs: dict[str, Any], names: list[str], per: str) -> Check:
    """Return a check that NaN or infinity in some places changes no bit elsewhere.

    One case in six has it. The named inputs, of one shape, are spoilt at random places; what may
    change with an element is its "row", or the "element" alone, as `per` says.
    """
    shape = inputs[names[0]].shape
    if shape.numel() == 0 or not draw.chance(1 / 6):
        return nothing_else
    spoils = [
        (name, tuple(draw.integer(0, size - 1) for size in shape),
         draw.choose(math.nan, math.inf, -math.inf))
        for name in names
    ]  # fmt: skip

    def spoil(given: dict[str, Any]) -> None:
        for name, place, value in spoils:
            given[name][place] = value

    def kept(name: str, was: Tensor, spoilt: dict[str, Any]) -> Tensor | None:
        if was.shape != shape:
            return None
        hit = torch.stack([differs(inputs[name], spoilt[name]) for name in names]).any(0)
        return ~(hit if per == "element" else hit.any(-1, keepdim=True).expand(shape))

    return unspoilt(spoil, kept)
