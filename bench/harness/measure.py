"""All variants of a case, in turn, in one process.

A `Case` is one problem and a `Variant` one way to do it. For each case

 1. every variant is checked, if it brings a check; one that is wrong is reported, not timed;
 2. every variant is built and warmed up, which is when compilers run;
 3. rounds are taken in turn (a b c a b c ...), so that drift hits all alike, until each variant has
    used its time; one that needs less time per round gets more rounds, up to a bound.

A variant that raises is a row with the reason, and the others go on. (A fault that poisons the
device's context, such as an illegal access, takes the rest of a CUDA run with it.)
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from bench.harness.clocks import Clock, Work
from bench.harness.limits import Limits
from bench.harness.results import Row, Scalar, summarise

PROFILES = ("smoke", "full", "gpu")


class Unavailable(Exception):
    """This machine cannot run the variant, for the reason given; its row is "skipped"."""


class WrongResult(Exception):
    """The variant's result is not within the error budget; its row is "failed"."""


@dataclass(frozen=True)
class Setting:
    """What is measured where: what `cases(setting)` of a benchmark chooses its cases by."""

    profile: str
    """smoke: everything, briefly and small; full: everything; gpu: what matters, on a GPU."""
    device: torch.device

    @property
    def smoke(self) -> bool:
        return self.profile == "smoke"

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """What kernels are measured in."""
        return torch.bfloat16 if self.on_gpu else torch.float32

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def no_triton(self) -> str | None:
        """Why our kernels are not timed here."""
        if self.on_gpu:
            return None
        return "no GPU here, and the time of Triton's interpreter would say nothing"


@dataclass(frozen=True)
class Variant:
    """One way to do what a case asks for.

    Attributes:
        name: unique in the case.
        build: makes what is timed. May raise Unavailable.
        ours: whether it is our own code; its failure fails the test.
        skip: why it is not timed here. A check that it brings is made all the same.
        check: raises WrongResult, or returns the error as a share of what it was allowed.
        build_compiled: the same under torch.compile, timed as `compiled_us`.
        metrics: more figures of the row, from the median of the seconds.
    """

    name: str
    build: Callable[[], Work]
    ours: bool = False
    skip: str | None = None
    check: Callable[[], float] | None = None
    build_compiled: Callable[[], Work] | None = None
    metrics: Callable[[float], Mapping[str, float]] | None = None


@dataclass(frozen=True)
class Case:
    """One problem, and who does it.

    Attributes:
        bench: the benchmark's name, as in the result file.
        case: what is measured, for the result file and the test's name.
        variants: makes them; called when the case's turn comes, so that what they hold lives no
            longer than it.
        per_second: amounts of one call; over the seconds they become metrics: "tflops" (1e12
            operations), "gbps" (1e9 bytes), "tokens_per_s" ... The fraction of the limit is that of
            "tflops" if there is one, else of "gbps".
        clock: "device", or "wall" for long calls that the host has a part in.
        three_ways: on a GPU, also the host's view of a call: `eager_us` and `compiled_us`.
        priority: order in the gpu profile, least first: 0 for headlines, 1, 2 for the rest.
    """

    bench: str
    case: Mapping[str, Scalar]
    variants: Callable[[], Sequence[Variant]]
    per_second: Mapping[str, float] = field(default_factory=dict)
    clock: str = "device"
    three_ways: bool = False
    priority: int = 1

    def __str__(self) -> str:
        return ",".join(f"{name}={value}" for name, value in self.case.items() if value is not None)


@dataclass(frozen=True)
class Budget:
    """How long to measure a variant, warm-up aside.

    Attributes:
        seconds: while less has been spent, there are more rounds, up to `max_rounds`.
        min_rounds: as many there are in any case, unless `patience` seconds have been spent.
        warm_up: seconds before the first round; at least one call.
    """

    seconds: float
    min_rounds: int = 3
    max_rounds: int = 200
    patience: float = 60.0
    warm_up: float = 0.05


BUDGETS = {
    "smoke": Budget(0.05, min_rounds=2, max_rounds=20, patience=10.0, warm_up=0.0),
    "full": Budget(1.0, min_rounds=5),
    "gpu": Budget(0.1, min_rounds=5, patience=10.0),
}


@dataclass(frozen=True)
class Measured:
    """A row, and the rounds behind its statistics in seconds."""

    row: Row
    rounds: Sequence[float]


@dataclass
class _Track:
    """Something of an entry that is timed in each round."""

    metric: str
    time: Callable[[], float]
    rounds: list[float] = field(default_factory=list)
    spent: float = 0.0


class _Entry:
    """A variant on its way through a case."""

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
        """Whatever is raised becomes the row's reason."""
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
            timed = clock.once if case.clock == "device" else _one_call(clock)
            tracks = [_Track("seconds", lambda: timed(work))]
            gpu = clock.device.type == "cuda"
            if case.three_ways and gpu:
                tracks[0] = _Track("gpu_us", lambda: clock.once(work))
                tracks.append(_Track("eager_us", lambda: clock.wall(work)))
                if self.variant.build_compiled is not None:
                    compiled = self.variant.build_compiled()
                    tracks.append(_Track("compiled_us", lambda: clock.wall(compiled)))
            for track in tracks:
                _warm_up(track.time, budget.warm_up)
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
                        metrics[track.metric] = 1e6 * summarise(track.rounds)["median"]
                if variant.metrics is not None:
                    metrics |= variant.metrics(seconds["median"])
        row = Row(
            case.bench, case.case, variant.name, self.status, self.reason, variant.ours,
            seconds if self.alive else None, metrics,
        )  # fmt: skip
        return Measured(row, rounds)


def measure(case: Case, clock: Clock, limits: Limits, budget: Budget) -> list[Measured]:
    """Check, warm up and time all variants of a case, in turn.

    Returns:
        A result for each variant, in their order; nothing is raised for a variant that fails.
    """
    torch.manual_seed(0)
    if "torch._dynamo" in sys.modules:  # else nothing has been compiled, and this takes seconds
        torch.compiler.reset()  # or else a dozen shapes of one function end its compilation
    results = _measure(case, clock, limits, budget)
    clock.release()
    return results


def _measure(case: Case, clock: Clock, limits: Limits, budget: Budget) -> list[Measured]:
    entries = [_Entry(variant) for variant in case.variants()]
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
    """Amounts over seconds, and the fraction of the limit that they come to."""
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


def _warm_up(call: Callable[[], float], seconds: float) -> None:
    end = time.perf_counter() + seconds
    call()
    while time.perf_counter() < end:
        call()


def _one_call(clock: Clock) -> Callable[[Work], float]:
    return lambda work: clock.wall(work, calls=1)
