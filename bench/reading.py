"""Result files as plots, tables and comparisons read them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.results import Scalar, load

ResultRow = Mapping[str, Any]
_KEYS = {"device", "slug", "date", "commit", "profile", "versions", "limits", "rows"}


def read_results(path: Path) -> dict[str, Any]:
    """A result file.

    Raises:
        ValueError: it is not one.
    """
    try:
        results = load(path)
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from None
    missing = _KEYS - results.keys() if isinstance(results, dict) else _KEYS
    if missing:
        raise ValueError(
            f"{path} is no result file of a benchmark: it has no {', '.join(sorted(missing))}"
        )
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
