"""An operator as a case: several implementations of one function, forward, backward or both.

An implementation takes the inputs as keyword arguments and returns a tensor or a tuple of tensors.
`"pass": "forward"` times the call with gradients switched on, as in training; "backward" the
gradients alone, given the outputs; "both" the two together. The gradients of the outputs are random
and contiguous; that of a loss is 1.

Each implementation is compared with the float64 reference in the same run, by outputs and, unless
only the forward is timed, by every gradient. With M the largest magnitude of the exact value and u
the unit roundoff of the dtype,

    max |result - float64|  <=  2 * (max |plain - float64| + u * M)

where `plain` is the reference computed in the dtype of the inputs. Ours must keep within that.
Others are timed if they keep within four times that, or within 512 roundings of float32 at M, as
sums over a vocabulary in plain order need: less care is not a wrong result, and `error_share` of
their row says how far off they are.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.harness.clocks import Work
from bench.harness.measure import Case, Variant, WrongResult
from bench.harness.results import Scalar

Inputs = Mapping[str, Any]
Function = Callable[..., Any]
PASSES = ("forward", "backward", "both")
PEER_SLACK, PEER_ROUNDINGS = 4, 512


@dataclass(frozen=True)
class Contender:
    """One implementation of the operator.

    Attributes:
        name: of the variant.
        function: takes the inputs by name, returns a tensor or a tuple of tensors.
        ours: whether it is our own code.
        skip: why it is not timed here.
        compile: what is timed is torch.compile of the function.
        compile_too: on a GPU its time under torch.compile is measured as well.
        overwrites: inputs that it writes over; it gets new ones each time, made untimed.
        checked: whether its result is compared although it is not timed.
    """

    name: str
    function: Function
    ours: bool = False
    skip: str | None = None
    compile: bool = False
    compile_too: bool = False
    overwrites: tuple[str, ...] = ()
    checked: bool = False


def operator_case(
    bench: str,
    case: Mapping[str, Scalar],
    contenders: Callable[[], Sequence[Contender]],
    *,
    reference: Function,
    inputs: Callable[[], Inputs],
    check_inputs: Callable[[], Inputs] | None = None,
    per_second: Mapping[str, float],
    three_ways: bool = False,
    priority: int = 1,
) -> Case:
    """A case that times `case["pass"]` of an operator.

    Args:
        bench, case, per_second, three_ways, priority: as in `Case`.
        contenders: makes the implementations, when the case's turn comes.
        reference: the specification, in plain PyTorch; computes in the dtype it is given.
        inputs: makes what is timed: random data, `requires_grad` where a gradient is wanted.
        check_inputs: makes the smaller problem that is compared; by default the timed one is.
    """
    which = case["pass"]
    if which not in PASSES:
        raise ValueError(f"pass must be one of {', '.join(PASSES)}, got {which!r}")

    def variants() -> list[Variant]:
        timed = functools.cache(inputs)
        checked = timed if check_inputs is None else functools.cache(check_inputs)
        referee = _Referee(reference, checked, with_gradients=which != "forward")
        upstream = _Upstream()

        def variant(contender: Contender) -> Variant:
            def build(compiled: bool = contender.compile) -> Work:
                function = _compiled(contender.function) if compiled else contender.function
                return _work(str(which), function, timed(), contender.overwrites, upstream)

            def check() -> float:
                compile_ = contender.compile and contender.skip is None
                function = _compiled(contender.function) if compile_ else contender.function
                return referee.judge(function, strict=contender.ours)

            return Variant(
                contender.name,
                build,
                ours=contender.ours,
                skip=contender.skip,
                check=check if contender.skip is None or contender.checked else None,
                build_compiled=(lambda: build(compiled=True)) if contender.compile_too else None,
            )

        return [variant(contender) for contender in contenders()]

    return Case(bench, case, variants, per_second, three_ways=three_ways, priority=priority)


class _Upstream:
    """Gradients of the outputs: made for the first contender, shared by all."""

    def __init__(self) -> None:
        self._made: list[Tensor | None] | None = None

    def __call__(self, outputs: tuple[Tensor, ...]) -> list[Tensor | None]:
        if self._made is None:
            self._made = [_random_gradient(out) for out in outputs]
        return self._made


def _random_gradient(out: Tensor) -> Tensor | None:
    """Random and contiguous; None, which autograd takes for 1, for a scalar."""
    if out.dim() == 0:
        return None
    return torch.randn(out.shape, dtype=out.dtype, device=out.device)


def _work(
    which: str,
    function: Function,
    inputs: Inputs,
    overwrites: Sequence[str],
    upstream: _Upstream,
) -> Work:
    def fresh() -> tuple[Inputs]:
        return ({**inputs, **{name: _copy(inputs[name]) for name in overwrites}},)

    def forward(given: Inputs) -> tuple[Tensor, ...]:
        return _as_tuple(function(**given))

    def backward(outputs: tuple[Tensor, ...], given: Inputs) -> object:
        return torch.autograd.grad(outputs, _leaves(given), upstream(outputs))

    def outputs_of_fresh() -> tuple[tuple[Tensor, ...], Inputs]:
        (given,) = fresh()
        return forward(given), given

    if which == "forward":
        return Work(forward, fresh)
    if which == "backward":
        return Work(backward, outputs_of_fresh)
    return Work(lambda given: backward(forward(given), given), fresh)


@dataclass(frozen=True)
class _Expected:
    """A float64 value, what ours may be off by, and what a peer may."""

    exact: Tensor
    allowed: float
    tolerated: float

    @classmethod
    def of(cls, plain: Tensor, exact: Tensor) -> "_Expected":
        most = float(exact.abs().max())
        roundoff = torch.finfo(plain.dtype).eps / 2
        allowed = 2 * (_distance(plain, exact) + roundoff * most)
        roundings = PEER_ROUNDINGS * torch.finfo(torch.float32).eps / 2 * most
        return cls(exact, allowed, max(PEER_SLACK * allowed, roundings))


class _Referee:
    """Compares implementations with the reference, which is computed once."""

    def __init__(
        self, reference: Function, inputs: Callable[[], Inputs], *, with_gradients: bool
    ) -> None:
        self._reference, self._inputs = reference, inputs
        self._with_gradients = with_gradients
        self._upstream = _Upstream()

    def judge(self, function: Function, *, strict: bool) -> float:
        """The worst error as a share of what is allowed.

        Args:
            function: the implementation.
            strict: whether more than what is allowed is wrong; else four times that is tolerated.

        Raises:
            WrongResult: it is wrong, or not a number.
        """
        got = self._quantities(function, {name: _copy(x) for name, x in self._inputs().items()})
        if got.keys() != self._expected.keys():
            raise WrongResult(f"gives {', '.join(got)} for {', '.join(self._expected)}")
        worst = 0.0
        for name, value in got.items():
            expected = self._expected[name]
            error = _distance(value, expected.exact)
            tolerated = expected.allowed if strict else expected.tolerated
            if not error <= tolerated:
                raise WrongResult(f"{name} is off by {error:.2e}, allowed {tolerated:.2e}")
            worst = max(worst, error / expected.allowed if expected.allowed else 0.0)
        return worst

    @functools.cached_property
    def _expected(self) -> dict[str, "_Expected"]:
        inputs = self._inputs()
        plain = self._quantities(self._reference, {name: _copy(x) for name, x in inputs.items()})
        wide = {name: _copy(x, torch.float64) for name, x in inputs.items()}
        exact = self._quantities(self._reference, wide)
        return {name: _Expected.of(plain[name], exact[name]) for name in exact}

    def _quantities(self, function: Function, inputs: Inputs) -> dict[str, Tensor]:
        """Outputs, and gradients if wanted, by name."""
        outputs = _as_tuple(function(**inputs))
        upstream = self._upstream(outputs)
        found = {f"output {i}": out.detach() for i, out in enumerate(outputs)}
        if self._with_gradients:
            grads = [
                None if up is None else up.to(out.dtype)
                for up, out in zip(upstream, outputs, strict=True)
            ]
            names = [name for name, x in inputs.items() if _is_leaf(x)]
            gradients = torch.autograd.grad(outputs, _leaves(inputs), grads)
            found |= {f"d{name}": grad for name, grad in zip(names, gradients, strict=True)}
        return found


def _compiled(function: Function) -> Function:
    compiled: Function = torch.compile(function, dynamic=False, fullgraph=True)
    return compiled


def _distance(got: Tensor, exact: Tensor) -> float:
    if got.shape != exact.shape:
        raise WrongResult(f"shape {tuple(got.shape)} for {tuple(exact.shape)}")
    return float((got.detach().double() - exact.detach()).abs().max())


def _copy(x: Any, dtype: torch.dtype | None = None) -> Any:
    """A leaf of its own with the same values; what is not floating-point stays as it is."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return x
    return x.detach().clone().to(dtype or x.dtype).requires_grad_(x.requires_grad)


def _is_leaf(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad


def _leaves(inputs: Inputs) -> list[Tensor]:
    return [x for x in inputs.values() if _is_leaf(x)]


def _as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)
