"""Result files: one JSON per run, `bench/results/<device>/<date>-<commit>.json`.

A file holds the device, the commit, the versions, the limits measured in that run, and a row for
each variant of each case, with statistics instead of raw rounds. It is rewritten, atomically, after
every case, so that a run cut short still leaves what it measured. pytest-benchmark writes its own
JSON at the end only, without the variants that were skipped or failed; `read_results` takes that
one as well.
"""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.harness.limits import Limits
from gpt2.common.cpu import available_cores, cpu_model
from gpt2.common.files import write_json
from gpt2.common.json_files import from_json, read_json_object

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "bench/results"
PACKAGES = (
    "triton", "flash_attn", "liger_kernel", "transformers", "tokenizers", "tiktoken",
    "llama_cpp_python",
)  # fmt: skip
DIGITS = 5  # of a float in a file; more would be noise, in the figures and in version control

Scalar = str | int | float | bool | None
ResultRow = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One variant of one case.

    Attributes:
        bench: attention, norms, mlp, losses, training, generate or tokenizer.
        case: the parameters of the problem.
        variant: name of the implementation.
        status: "ok", "failed" or "skipped".
        reason: why the status is not "ok", in one sentence.
        ours: True for our own code.
        seconds: median, min, p10, p90 and rounds of the time of one call; None unless "ok".
        metrics: further measurements, and figures derived from the median.
    """

    bench: str
    case: Mapping[str, Scalar]
    variant: str
    status: str
    reason: str | None = None
    ours: bool = False
    seconds: Mapping[str, float] | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return _rounded(dataclasses.asdict(self))


@dataclass(frozen=True)
class _File:
    """The fields that a result file must have."""

    device: str
    slug: str
    date: str
    commit: str
    profile: str
    versions: dict[str, str | None]
    limits: Limits
    rows: list[Row]

    def __post_init__(self) -> None:
        for row in self.rows:
            if row.status == "ok" and not (row.seconds or {}).get("median", 0) > 0:
                raise ValueError(f"rows: {row.variant} of {row.bench} is ok, and has no time")


class Results:
    """The result file of this run, as it grows.

    Args:
        device: of this run.
        profile: smoke, full or gpu.
        limits: as measured in this run.
        folder: folder of the file, made if needed; None keeps the results in memory.

    Attributes:
        header: the fields of the file other than its rows: device, commit, versions, limits ...
        rows: the rows so far.
        path: of the file; None if there is none.
    """

    def __init__(
        self, device: torch.device, profile: str, limits: Limits, folder: Path | None
    ) -> None:
        started = datetime.datetime.now()
        name = device_name(device)
        self.rows: list[Row] = []
        self.header: dict[str, Any] = {
            "device": name,
            "slug": slug(name, device.type),
            "date": started.date().isoformat(),
            "started": started.isoformat(timespec="seconds"),
            "commit": commit(),
            "profile": profile,
            "versions": versions(),
            "limits": _rounded(dataclasses.asdict(limits)),
        }
        self.path = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self.path = _unused(folder, f"{self.header['date']}-{self.header['commit']}")

    def add(self, rows: Iterable[Row]) -> None:
        """Add rows, and rewrite the file."""
        self.rows.extend(rows)
        if self.path is not None:
            write_json(self.path, {**self.header, "rows": [row.as_dict() for row in self.rows]})


def read_results(path: Path) -> dict[str, Any]:
    """Read a result file, or a JSON file of pytest-benchmark from a run of these benchmarks.

    Returns:
        The fields of a result file; `rows` are dictionaries with the fields of `Row`.

    Raises:
        ValueError: there is no such file, or it is neither.
    """
    results = read_json_object(path)
    try:
        if "benchmarks" in results:
            rows = [benchmark["extra_info"] for benchmark in results["benchmarks"]]
            results = {**results["run"], "rows": rows}
        from_json(_File, results, others=True, finite=False)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no result file of a benchmark: {error}") from error
    return results


def timed(results: Mapping[str, Any], *benches: str) -> list[ResultRow]:
    """The rows of these benchmarks whose variant was timed."""
    return [row for row in results["rows"] if row["bench"] in benches and row["status"] == "ok"]


def newest(folder: Path) -> Path | None:
    """The result file in a device's folder whose run started last; None if there is none."""
    started = {path: json.loads(path.read_text())["started"] for path in folder.glob("*.json")}
    return max(started, key=lambda path: (started[path], path), default=None)


def default_folder(device: torch.device) -> Path:
    """The folder for the results of a device."""
    return FOLDER / slug(device_name(device), device.type)


def describe(case: Mapping[str, Scalar]) -> str:
    """A case in one line, `T=1024,B=16,pass=forward`, without the settings that are off."""
    return ",".join(f"{name}={value}" for name, value in case.items() if value not in (None, False))


def in_order(values: Sequence[Any]) -> list[Any]:
    """Each value once, in the order of first appearance."""
    return list(dict.fromkeys(values))


def summarise(rounds: Sequence[float]) -> dict[str, float]:
    """Median, minimum, 10th and 90th percentile, and number of the rounds."""
    deciles = statistics.quantiles(rounds, n=10, method="inclusive") if len(rounds) > 1 else rounds
    return {
        "median": statistics.median(rounds),
        "min": min(rounds),
        "p10": deciles[0],
        "p90": deciles[-1],
        "rounds": len(rounds),
    }


def device_name(device: torch.device) -> str:
    """`"NVIDIA H200"`; for a CPU its model and the cores in use, `"AMD EPYC, 2 cores"`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = available_cores()
    return f"{cpu_model()}, {cores} core{'s' if cores > 1 else ''}"


def slug(name: str, device_type: str) -> str:
    """The folder name of a device: `h200`, `geforce-rtx-4090`, `cpu-epyc-2`."""
    name = re.sub(r"\((r|tm)\)|@.*hz|\b\d+-core\b", " ", name, flags=re.IGNORECASE)
    words = re.findall(r"[a-z0-9]+", name.lower())
    noise = {"nvidia", "amd", "intel", "cpu", "processor", "core", "cores", "graphics"}
    kept = [word for word in words if word not in noise]
    return "-".join(["cpu", *kept] if device_type == "cpu" else kept)


def commit() -> str:
    """The short hash of the checkout, with `-dirty` if tracked files have changed.

    GPT2_BENCH_COMMIT in the environment names the commit of a copy without git history.
    """
    named = os.environ.get("GPT2_BENCH_COMMIT")
    if named:
        return named
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude", "*"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return described.stdout.strip()


def versions() -> dict[str, str | None]:
    """Versions of Python, PyTorch and CUDA, and of the measured packages that are installed."""
    found: dict[str, str | None] = {
        "python": platform.python_version(), "torch": torch.__version__, "triton": None,
        "cuda": torch.version.cuda,
    }  # fmt: skip
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _unused(folder: Path, stem: str) -> Path:
    """A file name that no earlier run of that commit and day has taken."""
    path, serial = folder / f"{stem}.json", 1
    while path.exists():
        serial += 1
        path = folder / f"{stem}_{serial}.json"
    return path


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return value
