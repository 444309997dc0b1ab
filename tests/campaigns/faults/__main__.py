"""The fault campaign: what training survives, tried on real processes.

    python -m tests.campaigns.faults                            the short form, minutes
    python -m tests.campaigns.faults --long --out faults.json   hundreds of attempts
    python -m tests.campaigns.faults --table faults.json        the README's table of a result

Ends with status 1 when anything was lost. Needs fork and /proc: Linux.
"""

import itertools
import json
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gpt2.common.cli import run_tool
from gpt2.common.files import write_json
from tests.campaigns.faults.cases import CASES, Case
from tests.campaigns.faults.processes import preload
from tests.campaigns.faults.workplace import Attempt, Workplace, undisturbed

_SAY_EVERY = 60.0  # seconds


@dataclass(frozen=True)
class Arguments:
    """Kill, starve and damage training runs, and compare what comes out with an undisturbed one."""

    long: bool = False
    """Hundreds of attempts instead of some dozens."""
    quick: bool = False
    """One attempt or a few of each case."""
    only: str = ""
    """Only the cases whose name contains this."""
    times: int | None = None
    """So many attempts of each case, whatever the form."""
    seed: int = 0
    """Chooses the moments, the files and the damage."""
    out: str | None = None
    """Write the result here as JSON."""
    table: str | None = None
    """Print the table of a result file, and do nothing else."""


def campaign(arguments: Arguments) -> dict[str, Any]:
    """Run the cases; return what was tried and lost."""
    torch.set_num_threads(1)  # forked processes inherit no thread pool
    preload()
    form = "long" if arguments.long else "quick" if arguments.quick else "short"
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "undisturbed").mkdir()
        template = undisturbed(folder / "undisturbed")
        for number, (name, case) in enumerate(CASES.items()):
            if arguments.only in name:
                attempts = _attempts(case, template, folder / str(number), arguments.seed)
                rows.append(_try(name, case, attempts, arguments.times or getattr(case, form)))
    return {
        "command": f"python -m tests.campaigns.faults{'' if form == 'short' else f' --{form}'}"
        f" --seed {arguments.seed}",
        "torch": torch.__version__,
        "system": platform.platform(terse=True),
        "rows": rows,
    }


def _attempts(case: Case, template: Workplace, folder: Path, seed: int) -> Iterator[Attempt]:
    """The attempts of a case without an end, begun anew elsewhere when the case itself fails."""
    for number in itertools.count():
        place = template.copy(folder / str(number), f"{seed} {number}")
        try:
            yield from case.attempts(place)
        except Exception as error:
            yield f"the attempt itself failed: {error!r}"


def _try(name: str, case: Case, attempts: Iterator[Attempt], times: int) -> dict[str, Any]:
    """Make so many attempts of a case, and say how it goes."""
    lost = 0
    began = said = time.monotonic()
    for done in range(1, times + 1):
        loss = next(attempts)
        if loss is not None:
            lost += 1
            print(f"LOST: {name}: {loss}", flush=True)
        now = time.monotonic()
        if done == times or now - said > _SAY_EVERY:
            print(f"{name}: {done} of {times} tried, {lost} lost, {now - began:.0f} s", flush=True)
            said = now
    return {"case": name, "outcome": case.outcome, "tried": times, "lost": lost}


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = ["| what was done | what came out | tried | lost |", "| --- | --- | ---: | ---: |"]
    lines += ["| {case} | {outcome} | {tried} | {lost} |".format(**row) for row in result["rows"]]
    return "\n".join(lines)


def main(arguments: Arguments) -> None:
    if arguments.table:
        print(table(json.loads(Path(arguments.table).read_text(encoding="utf-8"))))
        return
    if not any(arguments.only in name for name in CASES):
        raise ValueError(f"no case contains {arguments.only!r}: choose from {', '.join(CASES)}")
    result = campaign(arguments)
    if arguments.out:
        write_json(arguments.out, result)
    print(table(result))
    if any(row["lost"] for row in result["rows"]):
        sys.exit(1)


if __name__ == "__main__":
    run_tool(main, Arguments)
