"""Result files as plots, tables and comparisons read them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.harness.limits import Limits
from bench.harness.results import Row, Scalar
from gpt2.common.json_files import from_json, read_json_object

ResultRow = Mapping[str, Any]


@dataclass(frozen=True)
class _File:
    """What a result file must hold."""

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


def read_results(path: Path) -> dict[str, Any]:
    """A result file.

    Raises:
        ValueError: it is not one.
    """
    results = read_json_object(path)
    try:
        from_json(_File, results, others=True, finite=False)
    except ValueError as error:
        raise ValueError(f"{path} is no result file of a benchmark: {error}") from error
    return results


def timed(results: Mapping[str, Any], *benches: str) -> list[ResultRow]:
    """The rows of these benchmarks that were measured."""
    return [row for row in results["rows"] if row["bench"] in benches and row["status"] == "ok"]


def describe(case: Mapping[str, Scalar]) -> str:
    """A case in one line: `T=1024 B=16 pass=forward`. Settings that are off are left out."""
    return " ".join(f"{name}={value}" for name, value in case.items() if value not in (None, False))


def in_order(values: Sequence[Any]) -> list[Any]:
    """Each value once, in the order of first appearance."""
    return list(dict.fromkeys(values))


def bytes_label(size: float) -> str:
    """`7.9 GiB`, `0.45 GiB`, `143 MiB`."""
    if size < 0.1 * 2**30:
        return f"{size / 2**20:.3g} MiB"
    return f"{size / 2**30:.2f} GiB" if size < 10 * 2**30 else f"{size / 2**30:.1f} GiB"
