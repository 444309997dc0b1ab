"""Everything that needs a GPU, in one command of less than nine minutes.

    python -m bench.gpu_check --out DIR

runs, one after the other: a description of the machine, the tests marked `cuda`, the `gpu` profile
of the benchmarks, their plots, and a training run with every kernel of ours that compares them with
PyTorch's as it goes. A part is a command of its own, ended with its children when its time is over
or this command ends; the time that it leaves goes to the others, which its failure does not stop.
DIR receives a log per part, `results/`, `plots/`, `training/`, and, after each part, `report.json`.
The status is 1 if a part failed, 2 if there is no GPU. `--dry-run`: every part on a CPU, toy size.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
# Part -> seconds that it may take. 30 s before its end, the benchmarks start no further case.
SECONDS = {"environment": 40, "tests": 140, "bench": 250, "plots": 20, "training": 80}
# pytest-xdist replaces a worker that crashes, or that pytest-timeout ends because it hangs.
TESTS = "-m pytest -m cuda -n 4 --timeout 60 --timeout-method thread -v"
BENCH = "-m pytest bench --benchmark-only --bench-profile gpu -v"
TRAIN = "train.py --preset gpt2 --attn triton --kernels triton --check-kernels 20 --steps 100"
DRY_TESTS = f"{TESTS} -n 1 tests/kernels/test_gelu.py"
DRY_BENCH = "-m pytest bench/bench_pointwise.py -k eager --benchmark-only --bench-profile smoke -v"
DRY_TRAIN = (
    "train.py --device cpu --no-compile --n-layer 1 --n-head 2 --n-embd 32 --seq-len 32 "
    "--vocab-size 300 --sample-tokens 8 --steps 2 --eval-tokens 64"
)


def command(part: str, out: Path, seconds: float, *, dry_run: bool) -> list[str]:
    """The arguments of Python for a part that may take `seconds`."""
    if part == "environment":
        return ["-m", "torch.utils.collect_env"]
    if part == "tests":
        return (DRY_TESTS if dry_run else TESTS).split()
    if part == "bench":
        where = ["--bench-out", f"{out}/results", "--bench-seconds", f"{seconds - 30:.0f}"]
        return [*(DRY_BENCH if dry_run else BENCH).split(), *where]
    if part == "plots":
        return ["-m", "bench.plot", *map(str, out.glob("results/*.json")), "--out", f"{out}/plots"]
    return [*(DRY_TRAIN if dry_run else TRAIN).split(), "--out", f"{out}/training"]


def run_limited(words: list[str], log: Path, seconds: float) -> str:
    """Run Python with its output in `log`: "ok", "failed", or "out of time"."""
    with log.open("w", encoding="utf-8") as file, subprocess.Popen(
        [sys.executable, "-u", *words], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file,
        stderr=subprocess.STDOUT, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            return "failed" if process.wait(max(0.0, seconds)) else "ok"
        except subprocess.TimeoutExpired:
            return "out of time"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def main(out: Path, *, dry_run: bool = False) -> int:
    """Run all parts; returns the exit status."""
    end = time.monotonic() + sum(SECONDS.values())
    report: list[dict[str, str | float]] = []
    for i, part in enumerate(SECONDS):
        start = time.monotonic()
        allowance = end - start - sum(list(SECONDS.values())[i + 1 :])
        log = out / f"{part}.log"
        status = run_limited(command(part, out, allowance, dry_run=dry_run), log, allowance)
        said = log.read_text(encoding="utf-8", errors="replace").strip() or "no output"
        last = said.split("\n")[-1][:200]
        took = round(time.monotonic() - start, 1)
        report.append({"part": part, "status": status, "seconds": took, "last": last})
        (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
        print(f"{part:12}{status:12}{took:7.1f} s  {last}", flush=True)
    return int(any(part["status"] != "ok" for part in report))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Everything that needs a GPU, in nine minutes.")
    parser.add_argument("--out", type=Path, required=True, help="new folder for all output")
    parser.add_argument("--dry-run", action="store_true", help="every part at toy size, on a CPU")
    given = parser.parse_args()
    if not given.dry_run and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU here; --dry-run needs none")
    given.out.mkdir(parents=True, exist_ok=True)
    if any(given.out.iterdir()):
        parser.error(f"--out {given.out} is not empty: choose a new folder")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    sys.exit(main(given.out.resolve(), dry_run=given.dry_run))
