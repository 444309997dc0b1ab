"""All that is done to training, and what must come out of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.campaigns.faults import job, kills, machine, storage
from tests.campaigns.faults.workplace import Attempt, Workplace


@dataclass(frozen=True)
class Case:
    """Something that is done to a run.

    Attributes:
        attempts: yields None each time that nothing was lost, or else a sentence on what was.
        outcome: what must come out.
        quick, short, long: how many attempts each form of the campaign makes.
    """

    attempts: Callable[[Workplace], Iterator[Attempt]]
    outcome: str
    quick: int
    short: int
    long: int


CASES = {
    "kill -9 at a random moment of training": Case(
        kills.killed_in_training, "resumed", 2, 10, 200
    ),
    "kill -9 with a checkpoint every step": Case(
        kills.killed_while_saving, "resumed", 2, 10, 200
    ),
    "SIGINT, SIGTERM, SIGHUP at a random moment": Case(
        kills.signalled, "resumed", 3, 9, 90
    ),
    "kill -9 while tokenising": Case(
        kills.killed_in_tokenising, "done again", 1, 3, 60
    ),
    "kill -9 while a tokenizer is trained": Case(
        kills.killed_in_tokenizer_training, "done again", 1, 5, 60
    ),
    "kill -9 of one of two processes of torchrun": Case(
        job.killed_of_several, "the other stops; resumed by one process", 1, 2, 10
    ),
    "disk full at a random file size": Case(
        storage.disk_full, "resumed with room again", 1, 5, 60
    ),
    "run folder or data cache write-protected": Case(
        storage.write_protected, "the folder named; resumed once it is not", 2, 5, 50
    ),
    "a file truncated, flipped, emptied, missing, overwritten": Case(
        storage.damaged_files, "resumed, or the file named", 3, 10, 200
    ),
    "files swapped within a run, between runs or data sets": Case(
        storage.swapped_files, "resumed, or the file named", 3, 10, 100
    ),
    "a second process in one run folder": Case(
        machine.second_run, "refused; the first goes on", 1, 2, 20
    ),
    "the wall clock jumps by years": Case(
        machine.clock_jumps, "went on", 1, 1, 10
    ),
    "memory runs out at a random size": Case(
        machine.short_of_memory, "smaller micro-batches, or what to lower", 1, 6, 60
    ),
}  # fmt: skip
