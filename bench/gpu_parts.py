"""The parts of `bench.gpu_check`, each run by it in a process of its own.

    python -m bench.gpu_parts environment|bench|training|plots --out DIR [--dry-run]

What may be missing on a machine is imported by the part that needs it.
"""

import argparse
import faulthandler
import importlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from bench.harness.measure import Case, Setting
    from bench.harness.results import Results, Row

NEEDED = (
    "triton", "numpy", "safetensors", "tiktoken", "regex", "tyro", "matplotlib", "tqdm", "pytest",
)  # fmt: skip
OPTIONAL = ("pytest-benchmark", "pytest-timeout", "hypothesis", "transformers", "liger_kernel")
# In the order of what matters most; cases of one priority follow this order.
BENCHES = ("training", "attention", "losses", "norms", "mlp", "generate")
LONGEST_CASE = 240  # seconds, compilation included; one that takes longer hangs


def environment(out: Path) -> None:
    """Write environment.json: the GPU, its driver, and versions of what is installed."""
    cuda = torch.cuda.is_available()
    installed = {name: _version(name) for name in ("torch", *NEEDED, *OPTIONAL)}
    about: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if cuda else f"CPU ({platform.machine()})",
        "cuda": torch.version.cuda if cuda else None,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        **installed,
        "missing": [name for name in NEEDED if installed[name] is None],
        "peer": os.environ.get("GPT2_BENCH_PEER"),
    }
    if cuda:
        properties = torch.cuda.get_device_properties(0)
        about["gpu"] = {
            "capability": torch.cuda.get_device_capability(),
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
            "cudnn": torch.backends.cudnn.version(),
            "nvidia_smi": _nvidia_smi(),
        }
    (out / "environment.json").write_text(json.dumps(about, indent=1) + "\n")
    print(json.dumps(about))


def bench(out: Path, *, seconds: float, first: int, dry_run: bool) -> None:
    """Measure the cases from number `first` on, and add their rows to the result file.

    Ends with status 3 when the GPU is of no use any more, or a case hangs: the caller starts anew.
    """
    end = time.monotonic() + seconds
    from bench.harness.clocks import clock_for
    from bench.harness.limits import Limits, measure_limits
    from bench.harness.measure import BUDGETS, Setting, measure
    from bench.harness.results import Results, load, newest

    device = torch.device("cpu" if dry_run else "cuda")
    setting = Setting("smoke" if dry_run else "gpu", device)
    clock, earlier = clock_for(device), newest(out / "results")
    if earlier is None:
        limits = measure_limits(clock, quick=dry_run)
        results = Results(device, setting.profile, limits, out / "results")
    else:  # an earlier process died
        held = load(earlier)
        limits = Limits(**held["limits"])
        results = Results(device, setting.profile, limits, out / "results")
        results.path = earlier
        results.rows += [_as_row(row) for row in held["rows"]]
    cases, broken = _cases(setting)
    if first == 0:
        results.add(broken)
    else:
        _add_if_lost(results, cases[first - 1])
    for number in range(first, len(cases)):
        if time.monotonic() > end:
            print(f"time is over: {len(cases) - number} cases left")
            break
        case = cases[number]
        progress = {"begun": number + 1, "cases": len(cases)}
        (out / "bench_progress.json").write_text(json.dumps(progress))
        print(f"{case.bench} {case}", flush=True)
        faulthandler.dump_traceback_later(LONGEST_CASE, exit=True)
        rows = [result.row for result in measure(case, clock, limits, BUDGETS[setting.profile])]
        results.add(rows)
        for row in rows:
            took = "" if row.seconds is None else f"{1e3 * row.seconds['median']:.3f} ms"
            print(f"  {row.variant}: {row.status} {took}{row.reason or ''}", flush=True)
        if setting.on_gpu:
            torch.cuda.synchronize()  # raises if a kernel has broken the context
    faulthandler.cancel_dump_traceback_later()


def training(out: Path, *, seconds: float, dry_run: bool) -> bool:
    """Train with every kernel of ours and with none, in turn, on one batch; write training.json.

    Both start from the same weights, so that their losses must stay together while they fall.

    Returns:
        Whether both losses fell by a tenth (dry run: at all), and no step was skipped.
    """
    from bench.harness.training_steps import Problem, Recipe, Step
    from gpt2.config import PRESETS, GPTConfig

    toy = GPTConfig(n_layer=2, n_head=2, n_embd=32, vocab_size=200)
    if dry_run:
        problem = Problem("toy", toy, 1, 16, torch.device("cpu"), torch.float32)
    else:
        problem = Problem("gpt2", PRESETS["gpt2"], 16, 1024, torch.device("cuda"), torch.bfloat16)
    recipes = {
        "on": Recipe("every kernel", "triton", "triton", "triton", "triton"),
        "off": Recipe("PyTorch's", "sdpa"),
    }
    steps = {name: Step(problem, recipe) for name, recipe in recipes.items()}
    losses: dict[str, list[float]] = {name: [] for name in steps}
    times: dict[str, list[float]] = {name: [] for name in steps}
    skipped = 0
    end = time.monotonic() + seconds
    done = 0
    while done < 3 or (time.monotonic() < end and not (dry_run and done >= 3)):
        for name, step in steps.items():
            start = time.perf_counter()
            result = step.run()  # it waits for the device, to see whether the loss is finite
            times[name].append(time.perf_counter() - start)
            losses[name].append(result.loss)
            skipped += result.skipped
        done += 1
        if done % 50 == 0:
            _write_training(out, problem.tokens, losses, times, skipped)
    report = _write_training(out, problem.tokens, losses, times, skipped)
    print(report["summary"])
    fallen = 1.0 if dry_run else 0.9
    return not skipped and all(curve[-1] < fallen * curve[0] for curve in losses.values())


def plots(out: Path) -> None:
    """Draw what the benchmarks found into DIR/plots."""
    from bench.harness.reading import read_results
    from bench.harness.results import newest
    from bench.plot.__main__ import draw

    file = newest(out / "results")
    if file is None:
        raise ValueError("no results to draw")
    left_out = draw(read_results(file), out / "plots", file.name)
    for name, reason in left_out.items():
        if reason is not None:
            print(f"{name} left out: {reason}")
    print(f"{list(left_out.values()).count(None)} of {len(left_out)} plots drawn")


def _cases(setting: "Setting") -> tuple[list["Case"], list["Row"]]:
    """The cases, most important first, and a failed row for each benchmark that has none to give.

    A dry run takes one case of each benchmark, the last, which is a small one.
    """
    from bench.harness.results import Row

    cases: list[Case] = []
    broken: list[Row] = []
    for name in BENCHES:
        if not (Path(__file__).parent / f"bench_{name}.py").exists():
            continue
        try:
            found = importlib.import_module(f"bench.bench_{name}").cases(setting)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            broken.append(Row(name, {}, "import", "failed", reason, ours=True))
            continue
        cases += found[-1:] if setting.smoke else found
    return sorted(cases, key=lambda case: case.priority), broken


def _add_if_lost(results: "Results", case: "Case") -> None:
    """A failed row for a case whose process died before it could write any."""
    from bench.harness.results import Row

    if not any(row.bench == case.bench and row.case == case.case for row in results.rows):
        reason = "the process died or hung in this case, see the log"
        results.add([Row(case.bench, case.case, "all", "failed", reason, ours=True)])


def _as_row(row: dict[str, Any]) -> "Row":
    from bench.harness.results import Row

    return Row(**row)


def _write_training(
    out: Path,
    tokens: int,
    losses: dict[str, list[float]],
    times: dict[str, list[float]],
    skipped: int,
) -> dict[str, Any]:
    """Write training.json and return it: curves of at most 200 points, and medians."""
    every = -(-len(losses["on"]) // 200)
    rate = {name: tokens / statistics.median(some) for name, some in times.items()}
    apart = max(abs(a - b) for a, b in zip(losses["on"], losses["off"], strict=True))
    fall = {name: f"{curve[0]:.2f} -> {curve[-1]:.2f}" for name, curve in losses.items()}
    report = {
        "steps": len(losses["on"]),
        "skipped": skipped,
        "tokens_per_s": {name: round(value, 1) for name, value in rate.items()},
        "largest_difference_of_losses": apart,
        "every": every,
        "losses": {name: [round(x, 5) for x in curve[::every]] for name, curve in losses.items()},
        "summary": (
            f"kernels on {rate['on']:,.0f} tokens/s, loss {fall['on']}; "
            f"off {rate['off']:,.0f}, {fall['off']}; apart by {apart:.2g} at most"
        ),
    }
    (out / "training.json").write_text(json.dumps(report) + "\n")
    return report


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _nvidia_smi() -> str:
    try:
        done = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", choices=("environment", "bench", "training", "plots"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args()
    if given.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    if given.part == "environment":
        environment(given.out)
    elif given.part == "bench":
        bench(given.out, seconds=given.seconds, first=given.first, dry_run=given.dry_run)
    elif given.part == "training":
        if not training(given.out, seconds=given.seconds, dry_run=given.dry_run):
            sys.exit("the loss did not fall, or steps were skipped")
    else:
        plots(given.out)


if __name__ == "__main__":
    main()
