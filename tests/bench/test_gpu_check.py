"""bench.gpu_check: whatever a part does, the others run, in time, and the report says what was."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import gpu_check, gpu_parts
from bench.gpu_check import Outcome, Run, check, read_junit, read_log, run_limited
from bench.harness.clocks import Work
from bench.harness.measure import Case, Variant
from bench.harness.results import Row
from tests.bench.synthetic_results import results

ROOT = Path(__file__).resolve().parents[2]
SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path, dry_run=True)


def _report(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.out / "report.json").read_text())
    return found


def test_a_part_that_fails_or_hangs_keeps_no_other_from_running(run, capsys):
    def raises(run: Run, seconds: float) -> Outcome:
        raise RuntimeError("planted")

    def hangs(run: Run, seconds: float) -> Outcome:
        return Outcome(run_limited(SLEEP, run.log("hangs"), seconds), "slept")

    def works(run: Run, seconds: float) -> Outcome:
        return Outcome("ok", "done", {"allowance": seconds})

    assert check(run, [(raises, 1.0), (hangs, 0.5), (works, 1.0)]) == 1
    parts = _report(run)["parts"]
    assert [part["status"] for part in parts] == ["failed", "out of time", "ok"]
    assert parts[0]["summary"] == "RuntimeError: planted"
    last = capsys.readouterr().out.splitlines()[-4:]
    assert [line.split()[0] for line in last] == ["raises", "hangs", "works", "in"]


def test_time_that_a_part_leaves_goes_to_the_next(run):
    allowances = []

    def part(run: Run, seconds: float) -> Outcome:
        allowances.append(seconds)
        return Outcome("ok", "")

    assert check(run, [(part, 10.0), (part, 20.0), (part, 30.0)]) == 0
    assert allowances == pytest.approx([10, 30, 60], abs=1.0)
    assert sum(seconds for _, seconds in gpu_check.PARTS) < 9 * 60


def test_a_killed_part_takes_its_children_with_it(tmp_path):
    pids = tmp_path / "pid"
    code = (
        "import subprocess, sys, time, pathlib\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"pathlib.Path({str(pids)!r}).write_text(str(child.pid))\n"
        "print('begun')\n"
        "time.sleep(60)\n"
    )
    log = tmp_path / "log"
    assert run_limited([sys.executable, "-c", code], log, seconds=5.0) == "out of time"
    assert "begun" in log.read_text()
    assert _gone(int(pids.read_text()))


def _gone(pid: int) -> bool:
    """Whether a process ends within a second; one that nobody has waited for counts as ended."""
    for _ in range(20):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        status = Path(f"/proc/{pid}/stat")
        if status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


def test_without_a_gpu_only_a_dry_run_goes_on(tmp_path, monkeypatch, capsys):
    def no_gpu(run: Run, seconds: float) -> Outcome:
        return Outcome("ok", "CPU", {"cuda": None})

    monkeypatch.setattr(gpu_check, "environment", no_gpu)
    assert check(Run(tmp_path, dry_run=False), [(no_gpu, 1.0), (no_gpu, 1.0)]) == 2
    assert "--dry-run" in capsys.readouterr().err


# A process that begins the next case, writes a row, and dies in the second case.
DIES = """
import json, pathlib, sys
out, first = pathlib.Path(sys.argv[1]), int(sys.argv[sys.argv.index("--first") + 1])
for case in range(first, 4):
    (out / "bench_progress.json").write_text(json.dumps({"begun": case + 1, "cases": 4}))
    if case == 1:
        sys.exit("illegal memory access")
    (out / "results").mkdir(exist_ok=True)
    row = {"bench": "norms", "variant": "x", "status": "ok", "ours": True, "reason": None}
    (out / f"results/{case}.json").write_text(json.dumps({"rows": [row]}))
"""


def test_benchmarks_go_on_after_a_case_that_killed_the_process(run, monkeypatch):
    def child(self: Run, part: str, *options: object) -> list[str]:
        return [sys.executable, "-c", DIES, str(self.out), *map(str, options)]

    monkeypatch.setattr(Run, "child", child)
    outcome = gpu_check.bench(run, seconds=120.0)
    assert sorted(path.stem for path in (run.out / "results").iterdir()) == ["0", "2", "3"]
    assert outcome.summary.startswith("4 of 4 cases; variants: 3 ok")
    assert "illegal memory access" in run.log("bench").read_text()


def _case(name: str, measured: list[str]) -> Case:
    work = Work(lambda: measured.append(name))
    return Case("norms", {"op": name}, lambda: [Variant("ours", lambda: work, ours=True)])


def test_a_second_process_adds_to_the_first_ones_file(tmp_path, monkeypatch):
    measured: list[str] = []
    some = [_case(name, measured) for name in ("a", "b", "c")]
    broken = [Row("mlp", {}, "import", "failed", "no module", ours=True)]
    monkeypatch.setattr(gpu_parts, "_cases", lambda setting: (some[:1], broken))
    gpu_parts.bench(tmp_path, seconds=60, first=0, dry_run=True)
    monkeypatch.setattr(gpu_parts, "_cases", lambda setting: (some, broken))
    gpu_parts.bench(tmp_path, seconds=60, first=2, dry_run=True)  # "b" has killed its process
    (file,) = (tmp_path / "results").iterdir()
    rows = [(r["case"].get("op"), r["status"]) for r in json.loads(file.read_text())["rows"]]
    assert rows == [(None, "failed"), ("a", "ok"), ("b", "failed"), ("c", "ok")]


def test_benchmarks_end_when_their_time_is_over(tmp_path, monkeypatch):
    measured: list[str] = []
    monkeypatch.setattr(gpu_parts, "_cases", lambda setting: ([_case("a", measured)], []))
    gpu_parts.bench(tmp_path, seconds=0, first=0, dry_run=True)
    assert not measured


def test_a_benchmark_that_cannot_be_imported_is_a_failed_row(monkeypatch):
    def no_module(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(gpu_parts.importlib, "import_module", no_module)
    cases, broken = gpu_parts._cases(gpu_check_setting())
    assert not cases
    assert {row.bench for row in broken} >= {"training", "attention", "norms", "mlp", "losses"}
    assert all(row.status == "failed" and row.ours for row in broken)


def gpu_check_setting() -> Any:
    from bench.harness.measure import Setting

    return Setting("smoke", torch.device("cpu"))


def test_results_of_tests_are_read_from_their_reports(tmp_path):
    report = tmp_path / "r.xml"
    report.write_text(
        '<testsuites><testsuite><testcase name="a"/><testcase name="b"><skipped/></testcase>'
        '<testcase name="c"><failure message="off by 3">...</failure></testcase>'
        '<testcase name="d"><error message="boom"/></testcase></testsuite></testsuites>'
    )
    assert read_junit(report) == {
        "complete": True, "passed": 1, "skipped": 1, "failures": ["c: off by 3", "d: boom"],
    }  # fmt: skip
    assert not read_junit(tmp_path / "none.xml")


def test_of_tests_that_were_killed_the_log_tells_what_had_ended(tmp_path):
    log = tmp_path / "log"
    log.write_text(
        "$ pytest\ntests/a.py::test_a[x 1] PASSED [ 25%]\ntests/a.py::test_b FAILED [ 50%]\n"
        "tests/a.py::test_c SKIPPED (why) [ 75%]\ntests/a.py::test_d"
    )
    assert read_log(log) == {
        "complete": False, "passed": 1, "skipped": 1, "failures": ["test_b: see the log"],
    }  # fmt: skip


def test_every_file_with_a_test_for_cuda_is_found():
    found = {file.name for file in gpu_check.test_files()}
    assert {"test_attention_cuda.py", "test_layer_norm.py", "test_cross_entropy.py"} <= found
    assert "test_gpu_check.py" not in found


def test_both_training_runs_stay_together(tmp_path):
    """With every kernel, in the interpreter, and with none: the same curve, going down."""
    if torch.cuda.is_available():
        pytest.skip("in Triton's interpreter")
    assert gpu_parts.training(tmp_path, seconds=0, dry_run=True)
    report = json.loads((tmp_path / "training.json").read_text())
    assert report["steps"] == 3
    assert report["losses"]["on"] == pytest.approx(report["losses"]["off"], abs=1e-4)


def test_plots_are_drawn_of_what_there_is(tmp_path, capsys):
    (tmp_path / "results").mkdir()
    ladder = [row for row in results()["rows"] if row["case"].get("ladder")]
    (tmp_path / "results/a.json").write_text(json.dumps(results(rows=ladder)))
    gpu_parts.plots(tmp_path)
    assert (tmp_path / "plots/ladder.png").exists()
    assert "1 of 6 plots drawn" in capsys.readouterr().out


def test_a_folder_with_an_earlier_run_is_refused(tmp_path):
    (tmp_path / "report.json").write_text("{}")
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu_check", "--out", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "not empty" in done.stderr


@pytest.mark.slow
def test_a_dry_run_goes_through_every_part(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu_check", "--out", str(tmp_path / "run"), "--dry-run"],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "run/report.json").read_text())
    names = [part["part"] for part in report["parts"]]
    assert names == ["environment", "tests", "bench", "training", "plots"]
    assert all(part["status"] == "ok" for part in report["parts"])
    assert list((tmp_path / "run/plots").glob("*.png"))
