"""Everything that is done to training, and what must come out of it."""

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.campaigns.faults import kills, machine, storage
from tests.campaigns.faults.processes import preload
from tests.campaigns.faults.workplace import Attempt, Workplace, undisturbed
from tests.campaigns.options import Options


@dataclass(frozen=True)
class Case:
    """Something that is done to a run, and what must come out."""

    attempts: Callable[[Workplace], Iterator[Attempt]]
    outcome: str
    short: int  # attempts in each form of the campaign
    long: int


CASES = {
    "kill -9 at a random moment of training": Case(kills.interrupted, "resumed", 2, 200),
    "kill -9 with a checkpoint every step": Case(
        partial(kills.interrupted, options=kills.SAVING), "resumed", 5, 200
    ),
    "SIGINT, SIGTERM, SIGHUP at a random moment": Case(kills.signalled, "resumed", 3, 90),
    "kill -9 while tokenising": Case(kills.killed_in_tokenising, "done again", 1, 60),
    "kill -9 while a tokenizer is trained": Case(kills.killed_in_counting, "done again", 1, 60),
    "kill -9 of one of two processes of torchrun": Case(
        kills.killed_of_several, "the other stops; resumed by one process", 1, 10
    ),
    "disk full at a random file size": Case(storage.disk_full, "resumed with room again", 1, 60),
    "run folder or data cache write-protected": Case(
        storage.write_protected, "the folder named; resumed once it is not", 2, 50
    ),
    "a file truncated, flipped, emptied, missing, overwritten": Case(
        storage.damaged_files, "resumed, or the file named", 3, 200
    ),
    "files swapped within a run, between runs or data sets": Case(
        storage.swapped_files, "resumed, or the file named", 3, 100
    ),
    "a second process in one run folder": Case(
        machine.second_run, "refused; the first goes on", 1, 20
    ),
    "the wall clock jumps by years": Case(machine.clock_jumps, "went on", 1, 10),
    "memory runs out at a random size": Case(
        machine.short_of_memory, "smaller micro-batches, or what to lower", 1, 60
    ),
}


def run(options: Options) -> dict[str, Any]:
    """Make the attempts of each case; return how many there were, and how many lost something."""
    names = options.chosen(CASES)
    torch.set_num_threads(1)  # forked processes inherit no thread pool
    preload()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "undisturbed").mkdir()
        template = undisturbed(folder / "undisturbed")
        for number, name in enumerate(names):
            case = CASES[name]
            budget = options.budget(case.short, case.long, shares=len(names))
            attempts = _attempts(case, template, folder / str(number), options.seed)
            tried = lost = 0
            began = time.monotonic()
            while budget.left(tried):
                tried += 1
                if (wrong := next(attempts)) is not None:
                    lost += 1
                    print(f"LOST: {name}: {wrong}", flush=True)
            seconds = time.monotonic() - began
            print(f"{name}: {tried} tried, {lost} lost, {seconds:.0f} s", flush=True)
            rows.append({"case": name, "outcome": case.outcome, "tried": tried, "lost": lost})
    return {"rows": rows}


def _attempts(case: Case, template: Workplace, folder: Path, seed: int) -> Iterator[Attempt]:
    """Yield attempts without end; where the case itself fails, begin anew in another folder."""
    for number in itertools.count():
        place = template.copy(folder / str(number), f"{seed} {number}")
        try:
            yield from case.attempts(place)
        except Exception as error:
            yield f"the attempt itself failed: {error!r}"
