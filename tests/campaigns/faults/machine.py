"""Faults around a training: another one in its folder, a clock that jumps, too little memory."""

import random
import shutil
import time
from collections.abc import Iterator
from functools import partial

from tests.campaigns.faults import workplace
from tests.campaigns.faults.processes import finish, limit_memory, run, start, wait_for
from tests.campaigns.faults.workplace import MODEL, Attempt, Workplace, refused, succeeds

# Activations of 90 MiB, so that it is they that do not fit. Without dropout, whose masks depend on
# the size of the micro-batches.
_LARGE = [
    *("--data", "stories.txt", "--vocab-size", "300", "--n-layer", "2", "--n-head", "2"),
    *("--n-embd", "64", "--seq-len", "128", "--batch-size", "64", "--grad-accum", "1"),
    *("--optimizer", "adamw", "--device", "cpu", "--dtype", "fp32", "--log-every", "1"),
    *("--sample-tokens", "4", "--steps", "4", "--eval-every", "2", "--checkpoint-every", "1"),
    *("--eval-tokens", "4000"),
]


def second_run(place: Workplace) -> Iterator[Attempt]:
    """Start another process in the folder of a run: it is refused, and the first is not hurt."""
    while True:
        shutil.rmtree(place.folder / "busy", ignore_errors=True)
        first = start(place.folder, "train.py", *MODEL, "--out", "busy")
        wait_for(first, (place.folder / "busy/checkpoints").exists)
        second_status = finish(start(place.folder, "train.py", "--resume", "busy"))
        if finish(first):
            yield "the first run was hurt"
        elif second_status == 2:
            yield place.trained("busy")
        else:  # the first had ended before the second asked
            yield None if second_status == 0 else f"the second run ended with {second_status}"


def clock_jumps(place: Workplace) -> Iterator[Attempt]:
    """Let the wall clock jump by years, back and forth, each time it is read."""

    def jump() -> None:
        time.time = lambda: random.uniform(0, 4e9)

    while True:
        shutil.rmtree(place.folder / "jumping", ignore_errors=True)
        yield place.run_now("jumping", *MODEL, "--out", "jumping", first=jump)


def short_of_memory(place: Workplace) -> Iterator[Attempt]:
    """Limit memory: training says what to lower, or halves its micro-batches."""
    status, said = run(place.folder, "train.py", *_LARGE, "--out", "roomy")
    assert status == 0, said
    short = place.folder / "short"
    while True:
        shutil.rmtree(short, ignore_errors=True)
        size = place.random.randint(30 << 20, 170 << 20)
        words = [*_LARGE, "--out", "short", *place.random.choice([["--auto-batch"], []])]
        status, said = run(place.folder, "train.py", *words, first=partial(limit_memory, size))
        wrong = None
        if status:
            wrong = refused(status, said, "out of memory") or refused(status, said, "--preset")
            if not wrong and "estimate" not in said:
                wrong = f"without the estimate: {said[-300:]!r}"
            if not wrong and list((short / "checkpoints").glob("step-*")):
                wrong = succeeds(place.folder, "train.py", "--resume", "short")
        if not wrong and not status:
            wrong = workplace.losses_differ(short, place.folder / "roomy")
        yield wrong and f"with {size >> 20} MiB: {wrong}"
