"""Seconds of one call, with cold caches: by the host's clock on a CPU, by events on a GPU.

Both clocks time a `Work`: `run`, with what an untimed `prepare` made for this one call, so that a
backward pass is timed without its forward. Before each call the caches are emptied by reading a
buffer larger than they are. (Writing one would leave them full of lines that the timed call would
have to write back.)

On a GPU a single call between two events also measures the host: launching a few kernels takes
longer than many kernels run. So the device is first made to wait, `run` is queued behind that, and
the events then enclose device work only, as in the replay of a CUDA graph, but for any call, also
for a backward pass, whose saved tensors no graph can hold. Whether the queue was complete when the
device began is checked each time; if not, the call is repeated with a longer wait. A call that
waits for the device itself cannot be queued, and its time includes the host's.

`wall` is the view of an eager training loop instead: calls in a row by the host's clock, the slower
of launching and computing, with caches as the calls leave them.

Not verified on hardware so far: CudaClock has only run against the simulated device of
tests/bench/test_clocks.py.
"""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch

# Upper bound of a GPU's clock rate: a wait comes out too long rather than too short.
CYCLES_PER_SECOND = 3e9
FIRST_WAIT, LONGEST_WAIT = 50e-6, 13e-3
DEFAULT_CPU_CACHE = 32 * 2**20


@dataclass(frozen=True, eq=False)
class Work:
    """The work of one round: `run(*prepare())`, of which only `run` is timed."""

    run: Callable[..., object]
    prepare: Callable[[], tuple[Any, ...]] = tuple


class CpuClock:
    """Times calls on a CPU by the host's performance counter."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self._evict = torch.zeros(2 * _last_level_cache() // 4)

    def once(self, work: Work) -> float:
        """Seconds of one call on the device, with cold caches."""
        args = work.prepare()
        self._evict.sum()
        start = time.perf_counter()
        work.run(*args)
        return time.perf_counter() - start

    def wall(self, work: Work, calls: int = 5) -> float:
        """Seconds per call of several calls in a row, by the host's clock."""
        prepared = [work.prepare() for _ in range(calls)]
        start = time.perf_counter()
        for args in prepared:
            work.run(*args)
        return (time.perf_counter() - start) / calls

    def peak_memory(self, work: Work) -> int | None:
        """Peak bytes that one call allocates on top of those of `prepare`, results included.

        None on a CPU, whose allocator keeps no statistics.
        """
        return None

    def release(self) -> None:
        """Free memory after a case."""
        gc.collect()


class CudaClock:
    """Times calls on a GPU by events, behind a queue that hides the host.

    Args:
        device: the GPU; must be the current one.
        cuda: `torch.cuda`, or the simulation of a test.
        now: the host's clock in seconds.
        evict: empties the L2 cache; by default reads a buffer of four times its size.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        cuda: Any = torch.cuda,
        now: Callable[[], float] = time.perf_counter,
        evict: Callable[[], object] | None = None,
    ) -> None:
        self.device = device
        self._cuda, self._now = cuda, now
        self._waits: WeakKeyDictionary[Work, float] = WeakKeyDictionary()
        if evict is None:
            size = 4 * cuda.get_device_properties(device).L2_cache_size
            buffer = torch.zeros(max(size, 128 * 2**20) // 4, device=device)
            evict = buffer.sum
        self._evict = evict

    def once(self, work: Work) -> float:
        while True:
            wait = self._waits.get(work, FIRST_WAIT)
            args = work.prepare()
            start, end = (self._cuda.Event(enable_timing=True) for _ in range(2))
            self._cuda.synchronize()
            self._evict()
            self._cuda._sleep(int(wait * CYCLES_PER_SECOND))
            start.record()
            work.run(*args)
            end.record()
            device_began = start.query()
            end.synchronize()
            if not device_began or wait == 0:
                return float(start.elapsed_time(end)) / 1e3
            self._waits[work] = 4 * wait if 4 * wait <= LONGEST_WAIT else 0

    def wall(self, work: Work, calls: int = 5) -> float:
        prepared = [work.prepare() for _ in range(calls)]
        self._cuda.synchronize()
        start = self._now()
        for args in prepared:
            work.run(*args)
        self._cuda.synchronize()
        return (self._now() - start) / calls

    def peak_memory(self, work: Work) -> int | None:
        args = work.prepare()
        self._cuda.synchronize()
        self._cuda.reset_peak_memory_stats()
        before = self._cuda.memory_allocated()
        results = work.run(*args)
        self._cuda.synchronize()
        peak = self._cuda.max_memory_allocated() - before
        del results
        return int(peak)

    def release(self) -> None:
        gc.collect()
        self._cuda.empty_cache()


Clock = CpuClock | CudaClock


def clock_for(device: torch.device) -> Clock:
    return CudaClock(device) if device.type == "cuda" else CpuClock()


def warm(call: Callable[[], float], seconds: float) -> None:
    """Call at least once, and again until the seconds have passed."""
    end = time.perf_counter() + seconds
    call()
    while time.perf_counter() < end:
        call()


def _last_level_cache() -> int:
    """Bytes of the CPU's last-level cache, as Linux reports them."""
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        if text.endswith("K") and text[:-1].isdigit():
            sizes.append(int(text[:-1]) * 1024)
    return max(sizes, default=DEFAULT_CPU_CACHE)
