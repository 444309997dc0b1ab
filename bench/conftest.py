"""`pytest bench --benchmark-only`: options, one test per variant of a case, and their results.

A benchmark is a module `bench_<what>.py` with

    def cases(setting: Setting) -> list[Case]: ...       the cases of this profile on this device
    def bench_<what>(case: Case, variant: str, measure: Measure) -> None:
        measure(case, variant)

The first test of a case measures all selected variants of it in turn (`bench.harness.measure`),
which pytest-benchmark cannot do by itself. Each test then replays the rounds of its own variant to
pytest-benchmark, whose table, storage and comparisons therefore hold every variant.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():  # must precede the first import of triton
    os.environ.setdefault("TRITON_INTERPRET", "1")

from bench.harness.clocks import clock_for
from bench.harness.limits import measure_limits
from bench.harness.measure import BUDGETS, ONCE, PROFILES, Case, Measure, Measured, Setting
from bench.harness.measure import measure as measure_case
from bench.harness.results import Results, default_folder, device_name, versions

RUN = pytest.StashKey["Run"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bench")
    group.addoption(
        "--bench-profile", choices=PROFILES, default="full",
        help="smoke: all, briefly and small; full (default): all; gpu: most important, on a GPU",
    )  # fmt: skip
    group.addoption(
        "--bench-out", type=Path, metavar="DIR",
        help="folder of the result file; by default bench/results/<device>, none for smoke",
    )  # fmt: skip
    group.addoption(
        "--bench-seconds", type=float, metavar="S",
        help="start no case after this many seconds; the others are skipped",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    setting_of(config)


def setting_of(config: pytest.Config) -> Setting:
    """Profile and device of this run; a usage error if the profile needs a missing GPU."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    profile = config.getoption("--bench-profile")
    if profile == "gpu" and device.type != "cuda":
        raise pytest.UsageError("--bench-profile gpu: PyTorch finds no GPU; use smoke or full")
    return Setting(profile, device)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return
    tests = []
    for case in metafunc.module.cases(setting_of(metafunc.config)):
        marks = [
            pytest.mark.benchmark(group=f"{case.bench} {case}", timer=_replay),
            pytest.mark.timeout(0),  # the first test of a case measures all of its variants
        ]
        tests += [
            pytest.param(case, variant.name, id=f"{case}-{variant.name}", marks=marks)
            for variant in case.variants()
        ]
    metafunc.parametrize(("case", "variant"), tests)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In the gpu profile, the most important cases come first."""
    if config.getoption("--bench-profile") == "gpu":
        items.sort(key=lambda item: case.priority if (case := _parameters(item)[0]) else 99)


def _parameters(item: pytest.Item) -> tuple[Case | None, str]:
    """The case and variant of a test; no case for a test of another kind."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    return params.get("case"), params.get("variant", "")


class _Replay:
    """A timer for pytest-benchmark that advances by rounds that were timed before."""

    def __init__(self) -> None:
        self._now = 0.0

    def __call__(self) -> float:
        return self._now

    def play(self, benchmark: Any, rounds: Sequence[float]) -> None:
        remaining = iter(rounds)

        def advance() -> None:
            self._now += next(remaining, 0.0)

        benchmark.pedantic(advance, rounds=len(rounds))


_replay = _Replay()


class Run:
    """The measurements of this run: limits first, then each case once."""

    def __init__(self, session: pytest.Session, *, enabled: bool) -> None:
        config, self.setting = session.config, setting_of(session.config)
        self.budget = BUDGETS[self.setting.profile] if enabled else ONCE
        self.clock = clock_for(self.setting.device)
        self.limits = measure_limits(self.clock, quick=self.setting.smoke)
        folder = config.getoption("--bench-out")
        if folder is None and not self.setting.smoke:
            folder = default_folder(self.setting.device)
        self.results = Results(self.setting.device, self.setting.profile, self.limits, folder)
        seconds = config.getoption("--bench-seconds")
        self.end = None if seconds is None else time.monotonic() + seconds
        self.selected: dict[Case | None, set[str]] = {}
        for item in session.items:
            case, variant = _parameters(item)
            self.selected.setdefault(case, set()).add(variant)
        self.measured: dict[Case, dict[str, Measured]] = {}

    def of(self, case: Case) -> dict[str, Measured]:
        """The results of a case by variant, measured when first asked for."""
        if case not in self.measured:
            if self.end is not None and time.monotonic() > self.end:
                pytest.skip("--bench-seconds are over")
            found = measure_case(
                case, self.clock, self.limits, self.budget, only=self.selected[case]
            )
            self.results.add(result.row for result in found)
            self.measured[case] = {result.row.variant: result for result in found}
        return self.measured[case]


@pytest.fixture
def measure(request: pytest.FixtureRequest, benchmark: Any) -> Measure:
    """Measure a case once, and report one of its variants as the result of this test."""
    stash = request.config.stash

    def report(case: Case, variant: str) -> Measured:
        if RUN not in stash:
            stash[RUN] = Run(request.session, enabled=benchmark.enabled)
        result = stash[RUN].of(case)[variant]
        row = result.row
        benchmark.params = {**case.case, "variant": variant}
        benchmark.extra_info.update(row.as_dict())
        if row.status == "failed" and row.ours:
            pytest.fail(f"{variant}: {row.reason}", pytrace=False)
        if row.status == "failed":  # the fault of a peer is not ours
            pytest.xfail(f"{variant}: {row.reason}")
        if row.status == "skipped":
            pytest.skip(f"{variant}: {row.reason}")
        _replay.play(benchmark, result.rounds)
        return result

    return report


@pytest.hookimpl(tryfirst=True)
def pytest_benchmark_group_stats(benchmarks: list[dict[str, Any]]) -> None:
    """In the table, where the group names the case, name only the variant."""
    for benchmark in benchmarks:
        benchmark["name"] = benchmark["params"]["variant"]


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """Let --benchmark-compare warn when the device or a version differs."""
    machine_info["device"] = device_name(setting_of(config).device)
    machine_info["versions"] = versions()


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Store device, commit, versions and limits, which `read_results` needs."""
    output_json["run"] = config.stash[RUN].results.header
