"""An operator as a case: several implementations of one function, forward, backward or both.

An implementation takes the inputs as keyword arguments and returns a tensor or a tuple of tensors.
`"pass": "forward"` times the call with gradients enabled, as in training; "backward" times the
gradients alone, given the outputs; "both" times the two together. The gradients of the outputs are
random and contiguous; that of a loss is 1.

Each implementation is compared with the float64 reference in the same run: its outputs and, unless
only the forward is timed, every gradient. Ours must keep the error budget of `kernels.testing`.
Peers are timed if they keep four times that, or 512 roundings of float32 at the largest exact
value, which sums over a vocabulary in plain order need: less precision is not a wrong result, and
`error_share` of their row gives the error over the budget.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.harness.clocks import Work
from bench.harness.measure import Case, Variant, error_share
from bench.harness.results import Scalar
from kernels.testing import Referee

Inputs = Mapping[str, Any]
Function = Callable[..., Any]
PASSES = ("forward", "backward", "both")
PEER_SLACK, PEER_ROUNDINGS = 4, 512


@dataclass(frozen=True)
class Contender:
    """One implementation of the operator.

    Attributes:
        name: name of the variant.
        function: takes the inputs by name and returns a tensor or a tuple of tensors.
        ours: True for our own code.
        skip: reason not to time it here.
        compile: time torch.compile of the function instead of the function.
        compile_too: on a GPU, also time the function under torch.compile.
        overwrites: names of inputs that it overwrites; each call gets new ones, made untimed.
        checked: compare its result even if it is not timed.
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
        contenders: makes the implementations, cheaply, as `Case.variants`.
        reference: the specification in plain PyTorch; computes in the dtype of its inputs.
        inputs: makes the timed inputs: random data, `requires_grad` where a gradient is wanted.
        check_inputs: makes the inputs of the comparison; by default the timed ones are compared.
    """
    which = case["pass"]
    if which not in PASSES:
        raise ValueError(f"pass must be one of {', '.join(PASSES)}, got {which!r}")

    def variants() -> list[Variant]:
        timed = functools.cache(inputs)

        @functools.cache
        def referee() -> Referee:
            compared = timed() if check_inputs is None else check_inputs()
            return Referee(reference, compared, gradients=which != "forward")

        upstream: list[Tensor] = []  # made for the first contender, shared by all

        def variant(contender: Contender) -> Variant:
            def build(compiled: bool = contender.compile) -> Work:
                function = _compiled(contender.function) if compiled else contender.function
                return _work(str(which), function, timed(), contender.overwrites, upstream)

            def check() -> float:
                compile_ = contender.compile and contender.skip is None
                function = _compiled(contender.function) if compile_ else contender.function
                return _judge(referee(), contender, function)

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


def _random_gradient(out: Tensor) -> Tensor:
    """Random and contiguous; 1 for a scalar."""
    make = torch.randn if out.dim() else torch.ones
    return make(out.shape, dtype=out.dtype, device=out.device)


def _work(
    which: str,
    function: Function,
    inputs: Inputs,
    overwrites: Sequence[str],
    upstream: list[Tensor],
) -> Work:
    def fresh() -> tuple[Inputs]:
        copies = {name: inputs[name].detach().clone() for name in overwrites}
        for name, copy in copies.items():
            copy.requires_grad_(inputs[name].requires_grad)
        return ({**inputs, **copies},)

    def forward(given: Inputs) -> tuple[Tensor, ...]:
        return _as_tuple(function(**given))

    def backward(outputs: tuple[Tensor, ...], given: Inputs) -> object:
        if not upstream:
            upstream.extend(_random_gradient(out) for out in outputs)
        return torch.autograd.grad(outputs, _leaves(given), upstream)

    def outputs_of_fresh() -> tuple[tuple[Tensor, ...], Inputs]:
        (given,) = fresh()
        return forward(given), given

    if which == "forward":
        return Work(forward, fresh)
    if which == "backward":
        return Work(backward, outputs_of_fresh)
    return Work(lambda given: backward(forward(given), given), fresh)


def _judge(referee: Referee, contender: Contender, function: Function) -> float:
    """The largest error of a quantity as a share of its budget; WrongResult if it is too large."""

    def keeping_inputs(**inputs: Any) -> Any:
        copies = {name: inputs[name].clone() for name in contender.overwrites}
        return function(**{**inputs, **copies})

    worst = 0.0
    for found in referee.judge(keeping_inputs).values():
        tolerated = found.allowed
        if not contender.ours:
            roundings = PEER_ROUNDINGS * torch.finfo(torch.float32).eps / 2 * found.size
            tolerated = max(PEER_SLACK * found.allowed, roundings)
        worst = max(worst, error_share(found, tolerated))
    return worst


def _compiled(function: Function) -> Function:
    compiled: Function = torch.compile(function, dynamic=False, fullgraph=True)
    return compiled


def _leaves(inputs: Inputs) -> list[Tensor]:
    return [x for x in inputs.values() if isinstance(x, Tensor) and x.requires_grad]


def _as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)
