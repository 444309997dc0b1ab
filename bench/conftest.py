"""`pytest bench --benchmark-only`: options, order, and the fixture that measures a case.

A benchmark is a module with

    def cases(setting: Setting) -> list[Case]: ...       what this profile measures on this device
    def bench_<what>(case: Case, measure: Measure) -> None:
        measure(case)

and each case becomes a test. Measuring is our own (`bench.harness.measure`): all variants of a case
take turns, which pytest-benchmark cannot do. It is shown the rounds of one variant afterwards:
ours, or where ours was not timed the first that was. `extra_info` names that one, and holds all
rows with device, commit, versions and limits.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():  # must precede the first import of triton
    os.environ.setdefault("TRITON_INTERPRET", "1")

from bench.harness.clocks import Clock, clock_for
from bench.harness.limits import Limits, measure_limits
from bench.harness.measure import BUDGETS, PROFILES, Case, Measured, Setting
from bench.harness.measure import measure as measure_case
from bench.harness.results import Results, default_folder

Measure = Callable[[Case], Sequence[Measured]]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bench")
    group.addoption(
        "--bench-profile", choices=PROFILES, default="full",
        help="smoke: all, briefly and small; full (default): all; gpu: what matters, on a GPU",
    )  # fmt: skip
    group.addoption(
        "--bench-out", type=Path, metavar="DIR",
        help="folder of the result file; by default bench/results/<device>, none for smoke",
    )  # fmt: skip
    group.addoption(
        "--bench-seconds", type=float, metavar="S",
        help="begin no case after so many seconds; the rest is skipped",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    setting_of(config)


def setting_of(config: pytest.Config) -> Setting:
    """What the command line asks for on this machine; a usage error if it cannot be had."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    profile = config.getoption("--bench-profile")
    if profile == "gpu" and device.type != "cuda":
        raise pytest.UsageError("--bench-profile gpu: PyTorch finds no GPU; use smoke or full")
    return Setting(profile, device)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        cases = metafunc.module.cases(setting_of(metafunc.config))
        metafunc.parametrize("case", cases, ids=str)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """pytest-benchmark reads our rounds; the gpu profile begins with what matters most."""
    for item in items:
        if "measure" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.benchmark(timer=_replay))
    if config.getoption("--bench-profile") == "gpu":
        items.sort(key=_priority)


def _priority(item: pytest.Item) -> int:
    callspec = getattr(item, "callspec", None)
    case = None if callspec is None else callspec.params.get("case")
    return case.priority if isinstance(case, Case) else 99


class _Replay:
    """A timer that goes on only by the rounds that are played, so that they are what is timed."""

    def __init__(self) -> None:
        self._now = 0.0

    def __call__(self) -> float:
        return self._now

    def play(self, benchmark: Any, rounds: Sequence[float]) -> None:
        remaining = iter(rounds)

        def advance() -> None:
            self._now += next(remaining)

        benchmark.pedantic(advance, rounds=len(rounds))


_replay = _Replay()


@pytest.fixture(scope="session")
def setting(pytestconfig: pytest.Config) -> Setting:
    """Profile and device of this run."""
    return setting_of(pytestconfig)


@pytest.fixture(scope="session")
def clock(setting: Setting) -> Clock:
    return clock_for(setting.device)


@pytest.fixture(scope="session")
def limits(setting: Setting, clock: Clock) -> Limits:
    """The device's limits, measured now."""
    return measure_limits(clock, quick=setting.smoke)


@pytest.fixture(scope="session")
def results(pytestconfig: pytest.Config, setting: Setting, limits: Limits) -> Results:
    """The result file of this run."""
    folder = pytestconfig.getoption("--bench-out")
    if folder is None and not setting.smoke:
        folder = default_folder(setting.device)
    return Results(setting.device, setting.profile, limits, folder)


@pytest.fixture(scope="session")
def deadline(pytestconfig: pytest.Config) -> float | None:
    seconds = pytestconfig.getoption("--bench-seconds")
    return None if seconds is None else time.monotonic() + seconds


@pytest.fixture
def measure(
    benchmark: Any,
    setting: Setting,
    clock: Clock,
    limits: Limits,
    results: Results,
    deadline: float | None,
) -> Measure:
    """Measure a case, keep its rows, and fail if a variant of ours did."""

    def run(case: Case) -> Sequence[Measured]:
        if deadline is not None and time.monotonic() > deadline:
            pytest.skip("--bench-seconds are over")
        measured = measure_case(case, clock, limits, BUDGETS[setting.profile])
        results.add(result.row for result in measured)
        benchmark.extra_info.update(results.header)
        _show(benchmark, case, measured)
        _judge(measured)
        return measured

    return run


def _show(benchmark: Any, case: Case, measured: Sequence[Measured]) -> None:
    benchmark.group = case.bench
    benchmark.extra_info["rows"] = [dataclasses.asdict(result.row) for result in measured]
    timed = [result for result in measured if result.row.status == "ok"]
    if timed:
        shown = next((result for result in timed if result.row.ours), timed[0])
        benchmark.extra_info["shown"] = shown.row.variant
        _replay.play(benchmark, shown.rounds)


def _judge(measured: Sequence[Measured]) -> None:
    rows = [result.row for result in measured]
    failed = [f"{row.variant}: {row.reason}" for row in rows if row.status == "failed" and row.ours]
    if failed:
        pytest.fail("; ".join(failed), pytrace=False)
    if all(row.status != "ok" for row in rows):
        pytest.skip("; ".join(f"{row.variant}: {row.reason}" for row in rows))
