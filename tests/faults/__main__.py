"""The fault campaign: what training survives, tried on real processes.

    python -m tests.faults                            the short form, minutes
    python -m tests.faults --long --out faults.json   hundreds of attempts
    python -m tests.faults --table faults.json        the README's table of a result

Ends with status 1 when anything was lost.
"""

import json
import platform
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from gpt2.cli import run_tool
from gpt2.files import write_json
from tests.faults.cases import CASES, Workplace


@dataclass(frozen=True)
class Arguments:
    """Kill, starve and damage training runs, and compare what comes out with an undisturbed one."""

    long: bool = False
    """Hundreds of attempts instead of some dozens."""
    only: str = ""
    """Only the cases whose name contains this."""
    seed: int = 0
    """Chooses the moments, the files and the damage."""
    out: str | None = None
    """Write the result here as JSON."""
    table: str | None = None
    """Print the table of a result file, and do nothing else."""


def campaign(*, long: bool, only: str, seed: int) -> dict[str, Any]:
    """Run the cases; return what was tried and lost."""
    torch.set_num_threads(1)  # forked processes inherit no thread pool
    rows = []
    for name, (case, outcome, short_form, long_form) in CASES.items():
        if only not in name:
            continue
        times = long_form if long else short_form
        lost = []
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            attempts = case(Workplace(Path(folder), seed))
            for _ in tqdm(range(times), desc=name, disable=not sys.stderr.isatty()):
                loss = next(attempts)
                if loss is not None:
                    lost.append(loss)
                    print(f"LOST: {name}: {loss}", flush=True)
        rows.append({"case": name, "outcome": outcome, "tried": times, "lost": len(lost)})
        print(
            f"{name}: {times} tried, {len(lost)} lost, {time.monotonic() - began:.0f} s", flush=True
        )
    return {
        "command": "python -m tests.faults" + (" --long" if long else "") + f" --seed {seed}",
        "torch": torch.__version__,
        "system": platform.platform(terse=True),
        "rows": rows,
    }


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = ["| what was done | what came out | tried | lost |", "| --- | --- | ---: | ---: |"]
    lines += ["| {case} | {outcome} | {tried} | {lost} |".format(**row) for row in result["rows"]]
    return "\n".join(lines)


def main(arguments: Arguments) -> None:
    if arguments.table:
        print(table(json.loads(Path(arguments.table).read_text(encoding="utf-8"))))
        return
    result = campaign(long=arguments.long, only=arguments.only, seed=arguments.seed)
    if not result["rows"]:
        raise ValueError(f"no case contains {arguments.only!r}: choose from {', '.join(CASES)}")
    if arguments.out:
        write_json(arguments.out, result)
    print(table(result))
    if any(row["lost"] for row in result["rows"]):
        sys.exit(1)


if __name__ == "__main__":
    run_tool(main, Arguments)
