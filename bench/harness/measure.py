"""Measurement of a case: all of its variants, in turn, in one process.

A `Case` is one problem and a `Variant` one way to solve it. For each case

 1. every variant with a check is checked; one that is wrong is reported and not timed;
 2. every variant is built and warmed up, which is when compilers run;
 3. rounds are taken in turn (a b c a b c ...), so that drift affects all alike, until each variant
    has used its time; a variant with short rounds gets more of them, up to a limit.

A variant that raises becomes a row with the reason, and the others go on. (A fault that destroys
the device's context, such as an illegal access, ends the rest of a CUDA run as well.)
"""

import statistics
import sys
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch

from bench.harness.clocks import Clock, Work, warm
from bench.harness.limits import Limits
from bench.harness.results import Row, Scalar, describe, summarise
from kernels.testing import Quantity

PROFILES = ("smoke", "full", "gpu")


class Unavailable(Exception):
    """Raised for a variant that this machine cannot run, with the reason; its row is "skipped"."""


class WrongResult(Exception):
    """Raised for a result outside the error budget; the variant's row is "failed"."""


def error_share(found: Quantity, tolerated: float | None = None) -> float:
    """The error as a share of its budget.

    Raises:
        WrongResult: the error is above `tolerated`, by default above the budget, or not a number.
    """
    most = found.allowed if tolerated is None else tolerated
    if not found.error <= most:
        raise WrongResult(f"{found.name} is off by {found.error:.2e}, allowed {most:.2e}")
    return found.share


@dataclass(frozen=True)
class Setting:
    """The profile and device a benchmark builds its cases for."""

    profile: str
    """smoke: everything, briefly and small; full: everything; gpu: the most important, on a GPU."""
    device: torch.device

    @property
    def smoke(self) -> bool:
        return self.profile == "smoke"

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the tensors that kernels are measured on."""
        return torch.bfloat16 if self.on_gpu else torch.float32

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def no_triton(self) -> str | None:
        """The reason not to time our kernels on this device; None on a GPU."""
        if self.on_gpu:
            return None
        return "no GPU here, and the time of Triton's interpreter would say nothing"


@dataclass(frozen=True)
class Variant:
    """One way to solve the problem of a case.

    Attributes:
        name: unique in the case.
        build: returns the work to time. May raise Unavailable.
        ours: True for our own code, whose failure fails the benchmark.
        skip: reason not to time it here. Its check, if it has one, runs all the same.
        check: returns the error as a share of the allowed error; raises WrongResult above 1.
        build_compiled: the same work under torch.compile, timed as `compiled_us`.
        metrics: further figures of the row, computed from the median seconds.
        calls: by the "wall" clock, how many calls in a row are a round, whose mean is taken.
    """

    name: str
    build: Callable[[], Work]
    ours: bool = False
    skip: str | None = None
    check: Callable[[], float] | None = None
    build_compiled: Callable[[], Work] | None = None
    metrics: Callable[[float], Mapping[str, float]] | None = None
    calls: int = 1


@dataclass(frozen=True, eq=False)
class Case:
    """One problem and the variants that solve it.

    Attributes:
        bench: name of the benchmark, as in the result file.
        case: the parameters of the problem, for the result file and the names of the tests.
        variants: makes the variants, cheaply: tensors and models are made when a variant is built.
            Called once for their names and again when the case is measured, so that nothing that
            they hold outlives the measurement.
        per_second: amounts of one call; over the seconds they become metrics: "tflops" (1e12
            operations), "gbps" (1e9 bytes), "tokens_per_s" ... The fraction of the limit is that of
            "tflops" if there is one, else of "gbps".
        clock: "device", or "wall" for long calls with a share of host time.
        three_ways: on a GPU, also time a call as the host sees it: `eager_us` and `compiled_us`.
        priority: order in the gpu profile, lowest first: 0 for headlines, 1 and 2 for the rest.
    """

    bench: str
    case: Mapping[str, Scalar]
    variants: Callable[[], Sequence[Variant]]
    per_second: Mapping[str, float] = field(default_factory=dict)
    clock: str = "device"
    three_ways: bool = False
    priority: int = 1

    def __str__(self) -> str:
        return describe(self.case)


@dataclass(frozen=True)
class Budget:
    """Time to spend on a variant.

    Attributes:
        seconds: rounds are added until they have taken this long, up to `max_rounds`.
        min_rounds: the least number of rounds, unless they have taken `patience` seconds.
        warm_up: seconds of calls before the first round, at least one call; not counted above.
    """

    seconds: float
    min_rounds: int = 3
    max_rounds: int = 200
    patience: float = 60.0
    warm_up: float = 0.05


ONCE = Budget(0.0, min_rounds=1, warm_up=0.0)
BUDGETS = {
    "smoke": Budget(0.05, min_rounds=2, max_rounds=20, patience=10.0, warm_up=0.0),
    "full": Budget(1.0, min_rounds=5),
    "gpu": Budget(0.1, min_rounds=5, patience=10.0),
}


@dataclass(frozen=True)
class Measured:
    """The row of a variant, and the seconds of each round."""

    row: Row
    rounds: Sequence[float]


Measure = Callable[[Case, str], Measured]  # measures a case; returns the result of one variant


@dataclass
class _Track:
    """One timing of an entry, taken in each round."""

    metric: str
    time: Callable[[], float]
    rounds: list[float] = field(default_factory=list)
    spent: float = 0.0


class _Entry:
    """The state of a variant while its case is measured."""

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self.status = "ok"
        self.reason: str | None = None
        self.tracks: list[_Track] = []
        self.metrics: dict[str, float] = {}

    @property
    def alive(self) -> bool:
        return self.status == "ok"

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Turn any exception of the block into the status and reason of the row."""
        try:
            yield
        except Unavailable as error:
            self._end("skipped", str(error))
        except torch.OutOfMemoryError:
            self._end("skipped", "out of memory")
        except WrongResult as error:
            self._end("failed", f"wrong result: {error}")
        except Exception as error:
            message = next(iter(str(error).strip().splitlines()), "")
            self._end("failed", f"{type(error).__name__}: {message}"[:300])

    def _end(self, status: str, reason: str) -> None:
        self.status, self.reason, self.tracks = status, reason, []

    def check(self) -> None:
        with self.guarded():
            if self.variant.check is not None:
                self.metrics["error_share"] = self.variant.check()
            if self.variant.skip is not None:
                raise Unavailable(self.variant.skip)

    def build(self, case: Case, clock: Clock, budget: Budget) -> None:
        with self.guarded():
            work = self.variant.build()
            in_a_row = partial(clock.wall, calls=self.variant.calls)
            timed = clock.once if case.clock == "device" else in_a_row
            tracks = [_Track("seconds", lambda: timed(work))]
            gpu = clock.device.type == "cuda"
            if case.three_ways and gpu:
                tracks[0] = _Track("gpu_us", lambda: clock.once(work))
                tracks.append(_Track("eager_us", lambda: clock.wall(work)))
                if self.variant.build_compiled is not None:
                    compiled = self.variant.build_compiled()
                    tracks.append(_Track("compiled_us", lambda: clock.wall(compiled)))
            for track in tracks:
                warm(track.time, budget.warm_up)
            peak = clock.peak_memory(work)
            if peak is not None:
                self.metrics["peak_memory_bytes"] = peak
            self.tracks = tracks

    def take(self, track: _Track) -> None:
        start = time.perf_counter()
        with self.guarded():
            track.rounds.append(track.time())
        track.spent += time.perf_counter() - start

    def result(self, case: Case, limits: Limits) -> Measured:
        variant, metrics, rounds = self.variant, dict(self.metrics), []
        seconds = None
        if self.alive:
            rounds = self.tracks[0].rounds
            seconds = summarise(rounds)
            with self.guarded():
                metrics |= rates(case.per_second, seconds["median"], limits)
                for track in self.tracks:
                    if track.metric != "seconds":
                        metrics[track.metric] = 1e6 * statistics.median(track.rounds)
                if variant.metrics is not None:
                    metrics |= variant.metrics(seconds["median"])
        row = Row(
            case.bench, case.case, variant.name, self.status, self.reason, variant.ours,
            seconds if self.alive else None, metrics,
        )  # fmt: skip
        return Measured(row, rounds)


def measure(
    case: Case, clock: Clock, limits: Limits, budget: Budget, only: Container[str] | None = None
) -> list[Measured]:
    """Check, warm up and time the variants of a case, in turn: all, or those named in `only`.

    Returns one result per variant, in their order; a variant that fails raises nothing.
    """
    torch.manual_seed(0)
    if "torch._dynamo" in sys.modules:  # else nothing has been compiled, and this takes seconds
        torch.compiler.reset()  # or else a dozen shapes of one function end its compilation
    results = _measure(case, clock, limits, budget, only)
    clock.release()
    return results


def _measure(
    case: Case, clock: Clock, limits: Limits, budget: Budget, only: Container[str] | None
) -> list[Measured]:
    entries = [_Entry(v) for v in case.variants() if only is None or v.name in only]
    for entry in entries:
        entry.check()
    for entry in entries:
        if entry.alive:
            entry.build(case, clock, budget)
    unfinished = True
    while unfinished:
        unfinished = False
        for entry in entries:
            for track in list(entry.tracks):
                if entry.alive and _wants_more(track, budget):
                    entry.take(track)
                    unfinished = True
    return [entry.result(case, limits) for entry in entries]


def rates(per_second: Mapping[str, float], seconds: float, limits: Limits) -> dict[str, float]:
    """Divide amounts by seconds, and add the fraction of the measured limit."""
    found = {name: amount / seconds for name, amount in per_second.items()}
    if "tflops" in found:
        found["fraction_of_limit"] = found["tflops"] / limits.matmul_tflops
    elif "gbps" in found:
        found["fraction_of_limit"] = found["gbps"] / limits.copy_gbps
    return found


def _wants_more(track: _Track, budget: Budget) -> bool:
    rounds = len(track.rounds)
    if rounds == 0 or (rounds < budget.min_rounds and track.spent < budget.patience):
        return True
    return track.spent < budget.seconds and rounds < budget.max_rounds
