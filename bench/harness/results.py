"""Result files: one JSON per run, `bench/results/<device>/<date>-<commit>.json`.

A file holds the device, the commit, the versions, the limits measured in that run, and a row for
each variant of each case. It is rewritten, atomically, after every case, so that a run cut short is
still of use. Rows hold statistics, never raw rounds.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.harness.limits import Limits
from gpt2.common.cpu import available_cores, cpu_model
from gpt2.common.files import write_json

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "bench/results"
PEERS = (
    "flash_attn", "liger_kernel", "transformers", "tokenizers", "tiktoken",
)  # fmt: skip
DIGITS = 5

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Row:
    """One variant of one case.

    Attributes:
        bench: attention, norms, mlp, losses, training, generate or tokenizer.
        case: what is measured.
        variant: who does it.
        status: "ok", "failed" or "skipped".
        reason: why it is not "ok", in one sentence.
        ours: whether the variant is our own code.
        seconds: median, min, p10, p90 and rounds of the time of one call; None unless "ok".
        metrics: what was measured besides, or follows from the median.
    """

    bench: str
    case: Mapping[str, Scalar]
    variant: str
    status: str
    reason: str | None = None
    ours: bool = False
    seconds: Mapping[str, float] | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


def summarise(rounds: Sequence[float]) -> dict[str, float]:
    """Median, minimum, 10th and 90th percentile of the rounds, and how many they were."""
    deciles = statistics.quantiles(rounds, n=10, method="inclusive") if len(rounds) > 1 else rounds
    return {
        "median": statistics.median(rounds),
        "min": min(rounds),
        "p10": deciles[0],
        "p90": deciles[-1],
        "rounds": len(rounds),
    }


class Results:
    """The result file of this run, as it grows.

    Args:
        device: of this run.
        profile: smoke, full or gpu.
        limits: as measured in this run.
        folder: of the file, made if needed; None keeps the results in memory.

    Attributes:
        header: what holds for all rows: device, commit, versions, limits ...
        rows: so far.
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
        """Take rows in, and write the file anew."""
        self.rows.extend(rows)
        if self.path is not None:
            write_json(self.path, self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """What the file holds."""
        rows = [_rounded(dataclasses.asdict(row)) for row in self.rows]
        return {**self.header, "rows": rows}


def default_folder(device: torch.device) -> Path:
    """Where the results of this device are kept."""
    return FOLDER / slug(device_name(device), device.type)


def load(path: Path) -> dict[str, Any]:
    """Read a result file."""
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return results


def newest(folder: Path) -> Path | None:
    """The result file of a device's folder whose run began last; None if there is none."""
    files = [(load(path).get("started", ""), path) for path in folder.glob("*.json")]
    return max(files, default=(None, None))[1]


def device_name(device: torch.device) -> str:
    """`"NVIDIA H200"`; for a CPU its model and the cores in use, `"AMD EPYC, 2 cores"`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = available_cores()
    return f"{cpu_model()}, {cores} core{'s' if cores > 1 else ''}"


def slug(name: str, device_type: str) -> str:
    """A folder's name for a device: `h200`, `geforce-rtx-4090`, `cpu-epyc-2`."""
    name = re.sub(r"\((r|tm)\)|@.*hz|\b\d+-core\b", " ", name, flags=re.IGNORECASE)
    words = re.findall(r"[a-z0-9]+", name.lower())
    noise = {"nvidia", "amd", "intel", "cpu", "processor", "core", "cores", "graphics"}
    kept = [word for word in words if word not in noise]
    return "-".join(["cpu", *kept] if device_type == "cpu" else kept)


def commit() -> str:
    """The short hash of the checkout, with `-dirty` if tracked files have changed.

    A copy without its history is told by the variable GPT2_BENCH_COMMIT.
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
    """Versions of what is measured, and of the peers that are installed."""
    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": None,
        "cuda": torch.version.cuda,
    }
    for package in ("triton", *PEERS):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _unused(folder: Path, stem: str) -> Path:
    """A name in the folder that no earlier run of that commit and day has taken."""
    path, serial = folder / f"{stem}.json", 1
    while path.exists():
        serial += 1
        path = folder / f"{stem}_{serial}.json"
    return path


def _rounded(value: Any) -> Any:
    """Floats to five digits: more would be noise, in the figures and in version control."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return value
