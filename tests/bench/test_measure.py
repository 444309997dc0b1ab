"""The measuring harness: turns, failures, checks, and the result file."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import bench_attention, bench_losses, bench_pointwise, bench_tokenizer
from bench.conftest import setting_of
from bench.harness.clocks import CpuClock, Work
from bench.harness.limits import Limits
from bench.harness.measure import Budget, Case, Setting, Unavailable, Variant, WrongResult, measure
from bench.harness.passes import Contender, operator_case
from bench.harness.results import Results, newest, slug, summarise
from kernels.layer_norm import layer_norm_reference

LIMITS = Limits(matmul_tflops=2.0, matmul_dtype="float32", copy_gbps=10.0, launch_us=None)
FEW = Budget(seconds=0.0, min_rounds=3, patience=1e3, warm_up=0.0)


class FakeClock(CpuClock):
    """Each call takes as long as it says; real time does not go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.device = torch.device("cpu")
        self.seconds = 0.0
        now = SimpleNamespace(perf_counter=lambda: self.seconds)
        monkeypatch.setattr("bench.harness.measure.time", now)

    def once(self, work: Work) -> float:
        args = work.prepare()
        before = self.seconds
        work.run(*args)
        return self.seconds - before

    def takes(self, seconds: float, then: Callable[[], object] = lambda: None) -> Work:
        def run() -> None:
            self.seconds += seconds
            then()

        return Work(run)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    return FakeClock(monkeypatch)


def case_of(*variants: Variant, **options: Any) -> Case:
    return Case("norms", {"N": 3}, lambda: variants, **options)


def test_variants_take_turns_after_the_warm_up(clock: FakeClock) -> None:
    calls: list[str] = []
    takes = {name: partial(clock.takes, 1.0, partial(calls.append, name)) for name in "ab"}
    measure(case_of(*(Variant(name, take) for name, take in takes.items())), clock, LIMITS, FEW)
    assert calls == ["a", "b", *["a", "b"] * 3]


def test_each_variant_gets_its_time(clock: FakeClock) -> None:
    seconds = {"glacial": 70.0, "slow": 5.0, "fast": 0.5, "instant": 0.001}
    case = case_of(*(Variant(name, partial(clock.takes, s)) for name, s in seconds.items()))
    budget = Budget(seconds=4.0, min_rounds=3, max_rounds=50, patience=60.0, warm_up=0.0)
    rounds = [len(result.rounds) for result in measure(case, clock, LIMITS, budget)]
    assert rounds == [1, 3, 8, 50]


def test_rates_and_fractions_come_from_the_median_and_the_limits_of_this_run(clock):
    def row(**amounts: float) -> Any:
        variant = Variant("a", lambda: clock.takes(0.5), metrics=lambda s: {"mfu": s})
        return measure(case_of(variant, per_second=amounts), clock, LIMITS, FEW)[0].row

    assert row(tflops=0.5, tokens=8).metrics == pytest.approx(
        {"tflops": 1.0, "tokens": 16.0, "fraction_of_limit": 0.5, "mfu": 0.5}
    )
    assert row(gbps=1.0).metrics["fraction_of_limit"] == pytest.approx(0.2)


def test_a_variant_that_fails_leaves_the_others_alone(clock: FakeClock) -> None:
    timed: list[str] = []

    def variant(name: str, **options: Any) -> Variant:
        return Variant(name, lambda: clock.takes(1.0, lambda: timed.append(name)), **options)

    def fails(error: BaseException) -> Callable[[], Any]:
        def call() -> Any:
            raise error

        return call

    later = iter([None, None, RuntimeError("third call\nand a long trace")])

    def breaks() -> None:
        if error := next(later):
            raise error

    case = case_of(
        variant("good"),
        variant("wrong", check=fails(WrongResult("dx is off"))),
        variant("right", check=lambda: 0.5),
        Variant("absent", fails(Unavailable("not installed"))),
        Variant("large", fails(torch.OutOfMemoryError("much"))),
        Variant("broken", lambda: clock.takes(1.0, breaks)),
        variant("elsewhere", skip="no GPU", check=lambda: 0.25),
        variant("elsewhere, wrong", skip="no GPU", check=fails(WrongResult("y is off"))),
    )
    rows = {r.row.variant: r.row for r in measure(case, clock, LIMITS, FEW)}
    assert {name: (row.status, row.reason) for name, row in rows.items()} == {
        "good": ("ok", None),
        "wrong": ("failed", "wrong result: dx is off"),
        "right": ("ok", None),
        "absent": ("skipped", "not installed"),
        "large": ("skipped", "out of memory"),
        "broken": ("failed", "RuntimeError: third call"),
        "elsewhere": ("skipped", "no GPU"),
        "elsewhere, wrong": ("failed", "wrong result: y is off"),
    }
    assert set(timed) == {"good", "right"}
    assert all((row.seconds is None) == (row.status != "ok") for row in rows.values())
    assert rows["elsewhere"].metrics == {"error_share": 0.25}


def test_on_a_gpu_small_kernels_are_timed_three_ways(clock: FakeClock) -> None:
    clock.device = torch.device("cuda")
    clock.wall = lambda work, calls=5: 2 * clock.once(work)  # type: ignore[method-assign]
    clock.peak_memory = lambda work: 4096  # type: ignore[method-assign]
    variants = (
        Variant("a", lambda: clock.takes(1e-5), build_compiled=lambda: clock.takes(2e-5)),
        Variant("b", lambda: clock.takes(3e-5)),
    )
    rows = [r.row for r in measure(case_of(*variants, three_ways=True), clock, LIMITS, FEW)]
    assert rows[0].metrics == pytest.approx(
        {"gpu_us": 10, "eager_us": 20, "compiled_us": 40, "peak_memory_bytes": 4096}
    )
    assert rows[0].seconds["median"] == pytest.approx(1e-5)
    assert set(rows[1].metrics) == {"gpu_us", "eager_us", "peak_memory_bytes"}


@pytest.mark.parametrize(
    "benchmark_of", [bench_attention, bench_losses, bench_pointwise, bench_tokenizer]
)
@pytest.mark.parametrize(
    ("profile", "device"),
    [("smoke", "cpu"), ("full", "cpu"), ("smoke", "cuda"), ("full", "cuda"), ("gpu", "cuda")],
)
def test_every_profile_names_its_cases_apart(benchmark_of, profile, device):
    cases = benchmark_of.cases(Setting(profile, torch.device(device)))
    assert len({str(case) for case in cases}) == len(cases)
    if profile == "gpu" and cases:
        assert min(case.priority for case in cases) == 0


def layer_norm_case(which: str, *contenders: Contender) -> Case:
    def inputs() -> dict[str, Tensor]:
        sizes = {"x": (37, 64), "weight": (64,), "bias": (64,)}
        return {name: torch.randn(size, requires_grad=True) for name, size in sizes.items()}

    return operator_case(
        "norms", {"pass": which}, lambda: contenders,
        reference=layer_norm_reference, inputs=inputs, per_second={},
    )  # fmt: skip


def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.nn.functional.layer_norm(x, weight.shape, weight, bias)


def without_centring(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True)) * weight + bias


def wrong_gradient(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return plain(x, weight.detach() + 0 * weight, bias)


@pytest.mark.parametrize("ours", [True, False])
def test_wrong_outputs_and_gradients_are_not_timed(clock: FakeClock, ours: bool) -> None:
    def status(which: str, function: Callable[..., Tensor]) -> str:
        case = layer_norm_case(which, Contender("it", function, ours=ours))
        return measure(case, clock, LIMITS, FEW)[0].row.status

    assert status("forward", plain) == "ok"
    assert status("backward", plain) == "ok"
    assert status("forward", without_centring) == "failed"
    assert status("forward", wrong_gradient) == "ok"
    assert status("backward", wrong_gradient) == "failed"
    assert status("both", wrong_gradient) == "failed"


def test_ours_is_held_to_the_budget_and_peers_to_four_times_it(clock: FakeClock) -> None:
    def careless(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return plain(x, weight, bias) * (1 + 1e-6)

    contenders = (Contender("ours", careless, ours=True), Contender("theirs", careless))
    case = layer_norm_case("forward", *contenders)
    ours, theirs = (result.row for result in measure(case, clock, LIMITS, FEW))
    assert ours.status == "failed"
    assert theirs.status == "ok"
    assert theirs.metrics["error_share"] > 1


def test_a_backward_pass_is_timed_without_its_forward(clock: FakeClock) -> None:
    def slow(**inputs: Tensor) -> Tensor:
        clock.takes(1.0).run()
        y = plain(**inputs)
        y.register_hook(lambda dy: clock.takes(10.0).run())
        return y

    def timed(which: str) -> Any:
        case = layer_norm_case(which, Contender("slow", slow))
        return measure(case, clock, LIMITS, FEW)[0].rounds

    assert timed("forward") == [1.0] * 3
    assert timed("backward") == [10.0] * 3
    assert timed("both") == [11.0] * 3


def test_a_contender_that_writes_over_its_inputs_spoils_them_for_nobody(clock: FakeClock) -> None:
    seen = set()

    def function(x: Tensor, weight: Tensor, bias: Tensor, *, untidy: bool) -> Tensor:
        seen.add(float(x.detach().sum()))
        y = plain(x.clone(), weight, bias)
        if untidy:
            x.detach().zero_()
        return y

    contenders = (
        Contender("untidy", partial(function, untidy=True), overwrites=("x",)),
        Contender("tidy", partial(function, untidy=False)),
    )
    results = measure(layer_norm_case("forward", *contenders), clock, LIMITS, FEW)
    assert [result.row.status for result in results] == ["ok", "ok"]
    assert len(seen) == 1


def test_useful_flops_of_attention() -> None:
    shape, useful_flops = (2, 1024, 12, 64), bench_attention.useful_flops
    assert useful_flops(*shape, None, "forward") == 4 * 2 * 12 * 64 * 1024**2 / 2
    assert useful_flops(*shape, 1024, "forward") == useful_flops(*shape, None, "forward")
    assert useful_flops(*shape, 256, "forward") == 4 * 2 * 12 * 64 * (256 * 1024 - 256**2 / 2)
    passes = [useful_flops(*shape, None, which) for which in ("forward", "backward", "both")]
    assert passes[1] == 2.5 * passes[0]
    assert passes[2] == passes[0] + passes[1]


@pytest.mark.parametrize(
    ("name", "device_type", "expected"),
    [
        ("NVIDIA H200", "cuda", "h200"),
        ("NVIDIA GeForce RTX 4090", "cuda", "geforce-rtx-4090"),
        ("AMD EPYC, 2 cores", "cpu", "cpu-epyc-2"),
        ("AMD EPYC 9B14 96-Core Processor, 8 cores", "cpu", "cpu-epyc-9b14-8"),
        ("Intel(R) Xeon(R) CPU @ 2.20GHz, 1 core", "cpu", "cpu-xeon-1"),
    ],
)
def test_folders_are_named_for_devices(name: str, device_type: str, expected: str) -> None:
    assert slug(name, device_type) == expected


def test_a_result_file_is_whole_after_every_case_and_no_run_overwrites_another(clock, tmp_path):
    summary = summarise([float(i) for i in range(101, 0, -1)])
    assert summary == {"median": 51, "min": 1, "p10": 11, "p90": 91, "rounds": 101}

    def run() -> Path:
        results = Results(torch.device("cpu"), "full", LIMITS, tmp_path)
        for count in (1, 2):
            case = case_of(Variant("a", lambda: clock.takes(1 / 3)), per_second={"gbps": 1.0})
            results.add(result.row for result in measure(case, clock, LIMITS, FEW))
            assert len(json.loads(results.path.read_text())["rows"]) == count
        return results.path

    first, second = run(), run()
    assert first != second
    assert newest(tmp_path) in (first, second)
    content = json.loads(first.read_text())
    assert content["limits"]["copy_gbps"] == LIMITS.copy_gbps
    assert content["versions"]["torch"] == torch.__version__
    assert content["rows"][0] == {
        "bench": "norms", "case": {"N": 3}, "variant": "a", "status": "ok", "reason": None,
        "ours": False, "metrics": {"gbps": 3.0, "fraction_of_limit": 0.3},
        "seconds": {"median": 0.33333, "min": 0.33333, "p10": 0.33333, "p90": 0.33333, "rounds": 3},
    }  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_the_gpu_profile_without_a_gpu_is_refused() -> None:
    config: Any = SimpleNamespace(getoption=lambda name: "gpu")
    with pytest.raises(pytest.UsageError, match="finds no GPU; use smoke or full"):
        setting_of(config)
