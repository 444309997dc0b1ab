"""Runs of pytest: every variant in pytest-benchmark's table, storage and comparisons."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.harness.results import ROOT, read_results

# Two cases of 2 ms each; ours takes SLOWER times as long.
TOY = """
import os
import time

from bench.harness.clocks import Work
from bench.harness.measure import Case, Variant, WrongResult

def sleep(seconds):
    return lambda: Work(lambda: time.sleep(seconds))

def wrong():
    raise WrongResult("y is off")

def variants():
    ours = sleep(2e-3 * float(os.environ["SLOWER"]))
    return [
        Variant("ours", ours, ours=True), Variant("theirs", sleep(2e-3)),
        Variant("absent", sleep(2e-3), skip="it is not installed"),
        Variant("ours, wrong", ours, ours=True, check=wrong),
        Variant("theirs, wrong", ours, check=wrong),
    ]

def cases(setting):
    return [Case("toy", {"N": N}, variants, {"gbps": 1.0}, clock="wall") for N in (3, 5)]

def bench_toy(case, variant, measure):
    measure(case, variant)
"""


def run_bench(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    common = ["-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
    common += ["--benchmark-only", "--bench-profile", "smoke"]
    common += ["-o", "timeout=0.001"]  # of a test; a measurement takes as long as it takes
    # It must not take itself for a part of this run, which may be spread over processes.
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, "-c", code, *common, *words],
        cwd=ROOT, env=own | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True,
    )  # fmt: skip


# One process for three runs of pytest, as importing torch takes longer than they do.
THREE_RUNS = """
import os, sys, pytest
def run(slower, *words):
    os.environ["SLOWER"] = slower
    try:
        status = int(pytest.main([*sys.argv[1:], *words]))
    except Exception as error:  # pytest-benchmark raises from the summary, which ends the process
        status = error
    print("status", status, "------ end of run")
run("1", "--benchmark-autosave")
run("10", "-k", "not wrong", "--benchmark-save=again", "--benchmark-compare=0001",
    "--benchmark-compare-fail=median:5%")
run("1", "-k", "theirs and not wrong", "--benchmark-compare=0001",
    "--benchmark-compare-fail=median:0.02")
"""


def test_options_of_pytest_benchmark_hold_for_every_variant(tmp_path: Path) -> None:
    file, store = tmp_path / "bench_toy.py", tmp_path / "store"
    file.write_text(TOY)
    toy = (str(file), "-p", "bench.conftest", f"--benchmark-storage=file://{store}")
    done = run_bench(THREE_RUNS, *toy)
    first, second, third = done.stdout.split("------ end of run")[:3]

    assert first.endswith("status 1 "), first
    for N in (3, 5):
        assert f"benchmark 'toy N={N}': 2 tests" in first
    assert "absent: it is not installed" in first
    assert "ours, wrong: wrong result: y is off" in first
    assert "2 failed, 4 passed, 2 skipped, 2 xfailed" in first
    (saved,) = store.rglob("0001_*.json")
    content = json.loads(saved.read_text())
    assert [b["params"] for b in content["benchmarks"]] == [
        {"N": N, "variant": variant} for N in (3, 5) for variant in ("ours", "theirs")
    ]
    assert content["run"]["limits"]["copy_gbps"] > 0
    for benchmark in content["benchmarks"]:
        row = benchmark["extra_info"]
        assert benchmark["stats"]["median"] == pytest.approx(row["seconds"]["median"], rel=1e-4)
        assert benchmark["stats"]["rounds"] == row["seconds"]["rounds"]

    assert second.endswith("status Performance has regressed. "), second
    assert "bench_toy[N=3-ours] (0001" in second + done.stderr
    (again,) = store.rglob("0002_again.json")
    assert len(read_results(again)["rows"]) == 4

    assert third.endswith("status 0 "), third
    assert "theirs (NOW)" in third, third
    assert "theirs (0001_" in third


SABOTAGED_RUN = """
import sys, pytest
import kernels.rms_norm
kernels.rms_norm.rms_norm = lambda x, weight: x * weight
sys.exit(pytest.main(sys.argv[1:]))
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="looks at what a run on a CPU leaves out")
def test_a_smoke_run_checks_our_kernels_and_fails_for_a_wrong_one(tmp_path: Path) -> None:
    wanted = ("-k", "norm and not add and forward and not compile", "--bench-out", str(tmp_path))
    done = run_bench(SABOTAGED_RUN, "bench/bench_pointwise.py", *wanted)
    assert done.returncode == 1, done.stdout
    assert "triton: wrong result" in done.stdout
    (file,) = tmp_path.glob("*.json")
    results = read_results(file)
    assert file.name.startswith(results["date"])
    status = {(row["case"]["op"], row["variant"]): row["status"] for row in results["rows"]}
    assert status["layer_norm", "triton"] == "skipped"
    assert status["rms_norm", "triton"] == "failed"
    assert status["layer_norm", "eager"] == status["rms_norm", "F.rms_norm"] == "ok"
    assert ("layer_norm", "torch.compile") not in status, "only what is selected is measured"
    checked = next(row for row in results["rows"] if row["ours"] and row["status"] == "skipped")
    assert 0 < checked["metrics"]["error_share"] <= 1
