"""Every operator of `kernels` on random shapes, strides and values, for as long as you like.

    python -m tests.campaigns.stress --minutes 10                      all operators, in turn
    python -m tests.campaigns.stress --only rms_norm --seed 3 --case 41    one case again

Without a GPU the kernels run in Triton's interpreter. A failure is printed with the command that
repeats it, and the command ends with status 1.
"""

import os
import sys
import time
from dataclasses import dataclass

import torch
from tqdm import tqdm

from gpt2.common.cli import run_tool

WIDTH = 24  # of the table's first column


@dataclass(frozen=True)
class Arguments:
    """Stress the kernels with random arguments, against float64 and with guarded memory."""

    minutes: float | None = None
    """How long; 1 without --cases and --case."""
    cases: int | None = None
    """How many cases of each operator."""
    only: tuple[str, ...] = ()
    """Only these operators."""
    seed: int = 0
    """Which series of cases: it depends on nothing else, but that a GPU gets larger cases."""
    case: int | None = None
    """Only the case with this number."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """cuda, or cpu for Triton's interpreter."""
    guards: bool = True
    """Surround tensors by memory that is watched; not under a tool that watches it itself."""


def main(arguments: Arguments) -> None:
    if arguments.device not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu or cuda, got {arguments.device!r}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch finds no GPU here; --device cpu needs none")
    os.environ["TRITON_INTERPRET"] = str(int(arguments.device == "cpu"))  # before Triton's import
    from tests.campaigns.stress.campaign import OPERATORS, Tally, run

    unknown = sorted(set(arguments.only) - set(OPERATORS))
    if unknown:
        raise ValueError(f"no operator {unknown[0]!r}: choose from {', '.join(OPERATORS)}")
    torch.set_num_threads(1)  # sums in the same order on every machine
    indices, seconds = _how_long(arguments)
    tallies = {name: Tally() for name in arguments.only or OPERATORS}
    began = time.monotonic()
    attempts = run(
        list(tallies), arguments.seed, torch.device(arguments.device), indices,
        seconds=seconds, guarded=arguments.guards,
    )  # fmt: skip
    for name, index, wrong in tqdm(attempts, unit=" cases", disable=not sys.stderr.isatty()):
        tally, now = tallies[name], time.monotonic()
        tally.cases += 1
        tally.seconds += now - began
        began = now
        if wrong is not None:
            tally.failures += 1
            again = f"--only {name} --seed {arguments.seed} --case {index}"
            again += f" --device {arguments.device}" + " --no-guards" * (not arguments.guards)
            print(f"FAILED: python -m tests.campaigns.stress {again}")
            print(f"  {wrong}", flush=True)
    print(f"{'operator':{WIDTH}}{'cases':>8}{'failed':>8}{'seconds':>9}")
    for name, tally in tallies.items():
        print(f"{name:{WIDTH}}{tally.cases:8}{tally.failures:8}{tally.seconds:9.0f}")
    if any(tally.failures for tally in tallies.values()):
        sys.exit(1)


def _how_long(arguments: Arguments) -> tuple[range, float | None]:
    """The numbers of the cases of each operator, and the seconds after which no more begin."""
    minutes = arguments.minutes
    if arguments.case is not None:
        if arguments.case < 0 or minutes is not None or arguments.cases is not None:
            raise ValueError("--case is one case, from 0 on: leave out --minutes and --cases")
        return range(arguments.case, arguments.case + 1), None
    if minutes is None and arguments.cases is None:
        minutes = 1.0
    cases = sys.maxsize if arguments.cases is None else arguments.cases
    if cases < 1 or (minutes is not None and not minutes > 0):
        raise ValueError("--cases and --minutes must be positive")
    return range(cases), None if minutes is None else 60 * minutes


if __name__ == "__main__":
    run_tool(main, Arguments)
