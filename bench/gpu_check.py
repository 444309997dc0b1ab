"""Everything that needs a GPU, in one call of less than nine minutes.

    python -m bench.gpu_check --out DIR

    environment   GPU, driver, versions, what is missing
    tests         the tests marked `cuda`
    bench         the `gpu` profile, most important first
    training      GPT-2 small on one repeated batch of random tokens, with every kernel of ours and
                  with none: the same loss curve, going down
    plots         of what the benchmarks found

Each part runs in processes of its own and is killed when its time is over; the time that a part
leaves goes to the next ones. A part that fails, hangs or dies does not keep the others from
running, and what it wrote until then stays: `report.json` (all of it, in short), `results/*.json`
(the benchmarks' result file), `training.json`, `plots/`, logs, and an XML report of each test file.
A short table is printed last; the status is 1 if a part failed.

`--dry-run` goes through every part on a CPU, at toy size and in Triton's interpreter.

The command itself needs nothing but Python, so that it can report what is missing; therefore it
parses its arguments by argparse.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
TEST_PROCESSES = 4
SPARE = 20.0  # seconds between the end that the benchmarks aim at and their being killed
TRAINING = 60.0  # seconds of training


@dataclass(frozen=True)
class Run:
    """This run: where it writes, and whether it is a dry one."""

    out: Path
    dry_run: bool

    def child(self, part: str, *options: object) -> list[str]:
        """The command of a part's own process."""
        words = [sys.executable, "-m", "bench.gpu_parts", part, "--out", self.out, *options]
        return [str(word) for word in words] + ["--dry-run"] * self.dry_run

    def log(self, part: str) -> Path:
        return self.out / f"{part}.log"


@dataclass
class Outcome:
    """How a part ended: "ok", "failed" or "out of time", in a sentence, and what was found."""

    status: str
    summary: str
    found: dict[str, Any] = field(default_factory=dict)


def environment(run: Run, seconds: float) -> Outcome:
    status = run_limited(run.child("environment"), run.log("environment"), seconds)
    found = _read(run.out / "environment.json")
    if status != "ok" or not found:
        return Outcome(status, _last_line(run.log("environment")), found)
    missing = f"; missing: {', '.join(found['missing'])}" if found["missing"] else ""
    versions = f"PyTorch {found['torch']}, Triton {found['triton']}"
    return Outcome("ok", f"{found['device']}, {versions}{missing}", found)


def tests(run: Run, seconds: float) -> Outcome:
    """Some files at a time, each in its own process: a fault that poisons the GPU ends with it."""
    end = time.monotonic() + seconds
    files = test_files()[:1] if run.dry_run else test_files()

    def one(file: Path) -> dict[str, Any]:
        report, log = run.out / f"{file.stem}.xml", run.out / f"{file.stem}.log"
        command = [
            sys.executable, "-m", "pytest", str(file), "-m", "cuda", "-v", "-p", "no:cacheprovider",
            f"--junitxml={report}", "--override-ini=addopts=--import-mode=importlib -ra",
        ]  # fmt: skip
        status = run_limited(command, log, end - time.monotonic())
        return {"file": file.name, "status": status, **(read_junit(report) or read_log(log))}

    with ThreadPoolExecutor(TEST_PROCESSES) as pool:
        found = list(pool.map(one, files))
    passed, skipped = (sum(f[key] for f in found) for key in ("passed", "skipped"))
    failures = [failure for f in found for failure in f["failures"]]
    unfinished = [f["file"] for f in found if not f["complete"]]
    status = "failed" if failures or unfinished or not (passed or run.dry_run) else "ok"
    summary = f"{passed} passed, {len(failures)} failed, {skipped} skipped"
    if unfinished:
        summary += f"; not finished: {', '.join(unfinished)}"
    return Outcome(status, summary, {"files": found})


def bench(run: Run, seconds: float) -> Outcome:
    """The gpu profile; if its process dies, another one goes on with the case after that."""
    end, progress = time.monotonic() + seconds, run.out / "bench_progress.json"
    first, status = 0, "failed"
    while True:
        left = end - time.monotonic()
        command = run.child("bench", "--seconds", f"{left - SPARE:.0f}", "--first", first)
        status = run_limited(command, run.log("bench"), left)
        begun = _read(progress).get("begun", 0)
        if status != "failed" or begun <= first or end - time.monotonic() < 2 * SPARE:
            break
        first = begun
    rows = [row for file in run.out.glob("results/*.json") for row in _read(file)["rows"]]
    of = {kind: [r for r in rows if r["status"] == kind] for kind in ("ok", "failed", "skipped")}
    ours = [f"{r['bench']} [{r['variant']}]: {r['reason']}" for r in of["failed"] if r["ours"]]
    cases = "{begun} of {cases} cases".format_map({"begun": 0, "cases": "?", **_read(progress)})
    counts = ", ".join(f"{len(found)} {kind}" for kind, found in of.items())
    summary = f"{cases}; variants: {counts}"
    if ours or not of["ok"]:
        status = "failed"
        summary += f"; {ours[0] if ours else _last_line(run.log('bench'))}"
    return Outcome(status, summary, {"failed": ours})


def training(run: Run, seconds: float) -> Outcome:
    status = run_limited(
        run.child("training", "--seconds", f"{min(TRAINING, seconds - SPARE):.0f}"),
        run.log("training"), seconds,
    )  # fmt: skip
    found = _read(run.out / "training.json")
    summary = found.get("summary") if found else None
    return Outcome(status, summary or _last_line(run.log("training")), found)


def plots(run: Run, seconds: float) -> Outcome:
    status = run_limited(run.child("plots"), run.log("plots"), seconds)
    return Outcome(status, _last_line(run.log("plots")))


# What each part may take, in seconds; together less than nine minutes.
PARTS: list[tuple[Callable[[Run, float], Outcome], float]] = [
    (environment, 40), (tests, 130), (bench, 260), (training, 80), (plots, 25),
]  # fmt: skip


def check(run: Run, parts: Sequence[tuple[Callable[[Run, float], Outcome], float]] = PARTS) -> int:
    """Run the parts and write the report after each of them.

    Returns:
        The status of the command: 0, 1 if a part failed, 2 if there is no GPU.
    """
    began = time.monotonic()
    end = began + sum(seconds for _, seconds in parts)
    report: dict[str, Any] = {"dry_run": run.dry_run, "parts": []}
    for i, (part, _) in enumerate(parts):
        start = time.monotonic()
        allowance = end - start - sum(seconds for _, seconds in parts[i + 1 :])
        print(f"{part.__name__}: up to {allowance:.0f} s", flush=True)
        try:
            outcome = part(run, allowance)
        except Exception as error:
            outcome = Outcome("failed", f"{type(error).__name__}: {error}")
        took = round(time.monotonic() - start, 1)
        report["parts"].append({"part": part.__name__, "seconds": took, **asdict(outcome)})
        (run.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
        if part is environment and not run.dry_run and not outcome.found.get("cuda"):
            print(f"error: no GPU here ({outcome.summary}); --dry-run needs none", file=sys.stderr)
            return 2
    print(table(report, time.monotonic() - began))
    return int(any(part["status"] != "ok" for part in report["parts"]))


def run_limited(command: Sequence[str], log: Path, seconds: float) -> str:
    """Run a command with its output added to `log`, and end it and its children when time is over.

    Returns:
        "ok", "failed", or "out of time".
    """
    environ = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with log.open("a", encoding="utf-8") as file:
        print("$", *command, file=file, flush=True)
        process = subprocess.Popen(
            command, cwd=ROOT, env=environ, stdin=subprocess.DEVNULL, stdout=file,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            print(f"killed after {seconds:.0f} s", file=file)
            return "out of time"
        finally:
            _kill_group(process.pid)
            process.wait()
        print(f"status {code}", file=file)
    return "ok" if code == 0 else "failed"


def test_files() -> list[Path]:
    """Test files with tests marked `cuda`; of the slow ones among them none is run."""
    mark = re.compile(r"^\s*@pytest\.mark\.cuda\b", re.MULTILINE)
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [file for file in files if mark.search(file.read_text(encoding="utf-8"))]


def read_junit(report: Path) -> dict[str, Any]:
    """Counts and failures of a JUnit report; {} where there is none, as of a killed process."""
    try:
        cases = list(ElementTree.parse(report).iter("testcase"))
    except (OSError, ElementTree.ParseError):
        return {}
    counts: dict[str, Any] = {"complete": True, "passed": 0, "skipped": 0, "failures": []}
    for case in cases:
        wrong = [element for element in case if element.tag in ("failure", "error")]
        if wrong:
            name, why = case.get("name"), wrong[0].get("message", "")
            counts["failures"].append(f"{name}: {why}"[:300])
        elif case.find("skipped") is not None:
            counts["skipped"] += 1
        else:
            counts["passed"] += 1
    return counts


def read_log(log: Path) -> dict[str, Any]:
    """The same from the lines of `pytest -v`, as far as it came."""
    ended = re.findall(r"^\S*::(.+?) (PASSED|SKIPPED|FAILED|ERROR)", log.read_text(), re.MULTILINE)
    words = [word for _, word in ended]
    return {
        "complete": False,
        "passed": words.count("PASSED"),
        "skipped": words.count("SKIPPED"),
        "failures": [f"{name}: see the log" for name, word in ended if word in ("FAILED", "ERROR")],
    }


def table(report: dict[str, Any], seconds: float) -> str:
    """A line for each part."""
    lines = [
        f"{part['part']:12}{part['status']:12}{part['seconds']:7.1f} s  {part['summary']}"
        for part in report["parts"]
    ]
    return "\n".join([*lines, f"{'in all':24}{seconds:7.1f} s"])


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def _last_line(log: Path) -> str:
    """The last line of a log that says something: the error, if there was one."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "no log"
    said = [line for line in lines if line.strip() and not line.startswith(("$", "status "))]
    return said[-1][:200] if said else "no output"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of all that is written")
    parser.add_argument("--dry-run", action="store_true", help="every part at toy size, on a CPU")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if any(arguments.out.iterdir()):
        parser.error(f"--out {arguments.out} is not empty: choose a new folder")
    sys.exit(check(Run(arguments.out.resolve(), arguments.dry_run)))


if __name__ == "__main__":
    main()
