"""What a stress case is, and what must hold for it."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from kernels.testing import Function, compare, quantities
from tests.campaigns.stress.draw import Draw
from tests.campaigns.stress.memory import Memory

# How often plain PyTorch's error is measured before a kernel is found to be worse.
SAMPLES = 16


def one_multiprocessor(_: Any) -> int:
    return 1


# So that each program walks over many tiles.
FEW_PROGRAMS = {"kernels._common.launch._multiprocessors": one_multiprocessor}
Refusals = Sequence["partial[Any]"]


@dataclass(frozen=True)
class Case:
    """Arguments that an operator must take, and what must come out."""

    kernel: Function
    reference: Function
    inputs: dict[str, Any]
    upstream: list[Tensor | None]
    cancelled: Mapping[str, Tensor]
    """See `kernels.testing.compare`: magnitudes of the float32 numbers that cancel on the way."""
    patches: dict[str, Any] = field(default_factory=dict)
    """Dotted name of a constant or function of a launcher -> what stands in its place."""
    also: Callable[["Case"], None] = lambda case: None
    """Asserts what else must hold."""

    def __str__(self) -> str:
        tensors = {name: x for name, x in self.inputs.items() if isinstance(x, Tensor)}
        tensors |= {f"upstream {i}": x for i, x in enumerate(self.upstream) if x is not None}
        words = [f"{name} {_words(x)}" for name, x in tensors.items()]
        words += [f"{n} = {getattr(x, '__name__', x)}" for n, x in self.patches.items()]
        return "; ".join(words)

    def run(self, inputs: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
        """Outputs and gradients of the kernel, on other inputs if given."""
        return quantities(self.kernel, self.inputs if inputs is None else inputs, self.upstream)


@dataclass(frozen=True)
class Operator:
    """How cases of an operator are drawn, and calls that it must refuse."""

    draw: Callable[[Draw], Case]
    refusals: Callable[[Draw], Refusals]


def check(operator: Operator, draw: Draw) -> None:
    """Draw a case of the operator, or a call that it must refuse, and assert what must hold."""
    if draw.chance(1 / 12):
        _check_refusal(draw.choose(*operator.refusals(draw)))
    else:
        check_case(operator.draw(draw), draw.memory)


def check_case(case: Case, memory: Memory) -> None:
    """Assert that a case keeps its error budgets and touches no memory that is not its own."""
    with ExitStack() as stack:
        for name, value in case.patches.items():
            stack.enter_context(patch(name, value))
        # NumPy tells of what the interpreter computes in lanes that nothing stores.
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            with memory.watch():
                compare(
                    case.kernel, case.reference, case.inputs, upstream=case.upstream,
                    cancelled=case.cancelled, samples=SAMPLES, in_range_only=True,
                )  # fmt: skip
                case.also(case)
            memory.check()
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error} [{case}]") from error


def _check_refusal(call: "partial[Any]") -> None:
    try:
        call()
    except ValueError as error:
        said = str(error)
    except Exception as error:
        name = type(error).__name__
        raise AssertionError(f"refused by {name}: {error} [{_call_words(call)}]") from error
    else:
        raise AssertionError(f"not refused [{_call_words(call)}]")
    assert len(said) > 20, f"a refusal that says nothing: {said!r}"


def _words(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    return f"{tuple(value.shape)} {value.dtype} strides {value.stride()}".replace("torch.", "")


def _call_words(call: "partial[Any]") -> str:
    named = [f"{name} = {_words(value)}" for name, value in call.keywords.items()]
    return "; ".join([call.func.__name__, *map(_words, call.args), *named])


def twin(x: Tensor) -> Tensor:
    """A copy with the strides and the alignment of `x`, to be changed."""
    storage = torch.empty(0, dtype=x.dtype, device=x.device).set_(x.untyped_storage()).clone()
    copy = storage.as_strided(x.shape, x.stride(), x.storage_offset())
    return copy.requires_grad_(x.requires_grad)


def beyond(x: Tensor, limit: float = torch.finfo(torch.float32).max / 4) -> Tensor:
    """Infinity in rows with a number above the limit, by default near the end of float32, else 0.

    Added to the magnitudes of what is computed from such a row: nothing is promised for it.
    """
    return torch.where(x.amax(-1, keepdim=True) < limit, 0.0, math.inf)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal everywhere, NaN to NaN; 0 is -0."""
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def check_that_rows_do_not_touch(case: Case, draw: Draw, names: Sequence[str], per: str) -> None:
    """NaN or infinity in some rows (per="row") or elements changes no bit elsewhere.

    Args:
        names: the inputs that are spoilt in the same places.
        per: what is spoilt with an element: its "row", or the "element" alone.
    """
    if any(case.inputs[name].numel() == 0 for name in names):
        return
    spoilt = dict(case.inputs)
    shape = case.inputs[names[0]].shape
    hit = torch.zeros(shape, dtype=torch.bool, device=draw.memory.device)
    for name in names:
        spoilt[name] = twin(case.inputs[name])
        place = tuple(draw.random.randrange(size) for size in shape)
        with torch.no_grad():
            spoilt[name][place] = draw.choose(float("nan"), float("inf"), -float("inf"))
        hit |= ~spoilt[name].isfinite()
    healthy = ~hit if per == "element" else ~hit.any(-1, keepdim=True).expand(shape)
    before, after = case.run(), case.run(spoilt)
    for name, was in before.items():
        if was.shape == shape:
            same = same_bits(was[healthy], after[name][healthy])
            assert same, f"{name}: what is not finite in one {per} spoils another"
