"""Threads that wait for each other: they spin on an idle machine, and sleep on a busy one.

PyTorch's wheels for Linux compute by libgomp, whose threads spin for milliseconds while they wait
for the others of their team. Where another process takes one of the cores, they spin on what is
left, while the thread that they wait for cannot run. OMP_WAIT_POLICY=passive lets them sleep, but
is read once, when PyTorch is imported; it costs speed on an idle machine, and loads come and go.

libgomp spins 300,000 times by default, and 100 times while it has more threads than there are
cores (its manual, GOMP_SPINCOUNT). So while the machine is busy, teams of threads that do nothing
are kept. The team that computes keeps its size, and so every result its bits.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOOK = 0.25  # seconds for which spinning threads are looked at
SLEEP = 8.0  # seconds of sleeping until the next look
BUSY = 0.15  # of their time, for which threads that spin could run and did not get a core
CHOICES = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}  # by which the user decides it
_PROCESS = Path("/proc/self")  # of Linux


@contextmanager
def sleeping_under_load() -> Iterator[None]:
    """Let PyTorch's threads sleep instead of spin in this block while the machine is busy.

    Nothing happens without PyTorch and libgomp in this process, or with one of the `CHOICES`.
    """
    torch, maps = sys.modules.get("torch"), _PROCESS / "maps"
    theirs = CHOICES & os.environ.keys() or not maps.exists() or "libgomp" not in maps.read_text()
    if not torch or theirs or (threads := torch.get_num_threads()) < 2:
        yield
        return
    end = threading.Event()
    watch = threading.Thread(target=_watch, args=(end, threads), daemon=True)
    watch.start()
    try:
        yield
    finally:
        end.set()
        watch.join()


def _watch(end: threading.Event, threads: int) -> None:
    """Keep idle teams while the machine is busy, until `end` is set; `threads` make a team.

    Only threads that spin tell whether that does harm: beside a niced process it may do none, and
    threads that sleep would wait for it. So they spin for one look now and then.
    """
    slept = 0.0
    while not end.is_set():
        before, waited = time.monotonic(), _waited()
        end.wait(LOOK)
        now = time.monotonic()
        if _waited() - waited > BUSY * threads * (now - before):
            with _idle_teams(threads):
                end.wait(SLEEP)
            slept += time.monotonic() - now
    if slept >= 1:  # told at the end, where no text and no bar is on its way
        line = f"the CPU was busy: for {slept:,.0f} seconds threads slept while they waited"
        print(line, file=sys.stderr)


def _waited() -> float:
    """Seconds for which the threads of this process could run and did not get a core."""
    total = 0
    for thread in os.listdir(_PROCESS / "task"):
        with suppress(OSError):  # it has ended, or this kernel does not count
            total += int((_PROCESS / "task" / thread / "schedstat").read_text().split()[1])
    return total / 1e9


@contextmanager
def _idle_teams(threads: int) -> Iterator[None]:
    """Keep as many teams as give libgomp more threads than cores, until the block ends."""
    import torch

    release = threading.Event()

    def team() -> None:
        torch.zeros(1 << 17).add_(1)  # large enough for a team, which ends with this thread
        release.wait()

    needed = (len(os.sched_getaffinity(0)) - threads) // (threads - 1) + 1
    teams = [threading.Thread(target=team, daemon=True) for _ in range(needed)]
    for thread in teams:
        thread.start()
    try:
        yield
    finally:
        release.set()
        for thread in teams:
            thread.join()  # the process would abort if it ended while one computes
