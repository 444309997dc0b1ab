"""All operators under stress, case by case."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from tests.campaigns.stress import attention, losses, norms, pointwise
from tests.campaigns.stress.case import Operator, check
from tests.campaigns.stress.draw import Draw
from tests.campaigns.stress.memory import Memory

OPERATORS: dict[str, Operator] = {
    **attention.OPERATORS, **norms.OPERATORS, **pointwise.OPERATORS, **losses.OPERATORS,
}  # fmt: skip


@dataclass
class Tally:
    """What was tried of one operator."""

    cases: int = 0
    failures: int = 0
    seconds: float = 0.0


def attempt(
    name: str, seed: int, index: int, device: torch.device, *, guarded: bool = True
) -> str | None:
    """Check one case; return what was wrong, or None.

    Args:
        name: of the operator.
        seed, index: which case.
        device: a GPU, or the CPU with Triton's interpreter.
        guarded: watch the memory around tensors, see `Memory`.
    """
    draw = Draw(f"{seed} {name} {index}", Memory(device, guarded))
    try:
        check(OPERATORS[name], draw)
    except AssertionError as error:
        return str(error)
    return None


def run(
    names: Sequence[str],
    seed: int,
    device: torch.device,
    indices: Iterable[int],
    *,
    seconds: float | None = None,
    guarded: bool = True,
) -> Iterator[tuple[str, int, str | None]]:
    """Check the cases with these numbers of each operator in turn, until `seconds` have passed.

    Yields:
        operator, number of the case, and what was wrong or None.
    """
    end = None if seconds is None else time.monotonic() + seconds
    for index in indices:
        for name in names:
            if end is not None and time.monotonic() > end:
                return
            yield name, index, attempt(name, seed, index, device, guarded=guarded)
