"""What became faster or slower between two runs on one device.

    python -m bench.compare OLD.json NEW.json --threshold 0.05

prints new over old median seconds of every variant of every case that both runs timed, slowest
change first. Ends with status 1 if a variant of ours became slower by more than the threshold, or
fails now. Peers are shown but decide nothing: their time is the noise of the machine, and their own
versions.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from bench.harness.reading import ResultRow, describe, read_results

Key = tuple[str, str, str]


@dataclass(frozen=True)
class Arguments:
    """What became faster or slower between two runs on one device."""

    old: Positional[Path]
    """Result file of the earlier run."""
    new: Positional[Path]
    """Result file of the later run."""
    threshold: float = 0.05
    """A change by more than this share of the time counts."""
    force: bool = False
    """Compare runs on different devices all the same."""


@dataclass(frozen=True)
class Change:
    """A variant of a case in both runs; `ratio` is new over old median seconds."""

    row: ResultRow
    ratio: float


@dataclass(frozen=True)
class Comparison:
    """All changes, slowest first; rows that one run alone timed; ours that fail now."""

    changes: list[Change]
    only_old: list[ResultRow]
    only_new: list[ResultRow]
    broken: list[ResultRow]

    def slower(self, threshold: float) -> list[Change]:
        """Variants of ours that became slower by more than the threshold."""
        return [c for c in self.changes if c.row["ours"] and c.ratio > 1 + threshold]


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> Comparison:
    """Match the rows of two runs by benchmark, case and variant."""
    before, after = _by_key(old), _by_key(new)
    both = [key for key in after if key in before]
    changes = [Change(after[key], _median(after[key]) / _median(before[key])) for key in both]
    return Comparison(
        sorted(changes, key=lambda change: -change.ratio),
        [row for key, row in before.items() if key not in after],
        [row for key, row in after.items() if key not in before],
        [
            row for row in new["rows"]
            if row["status"] == "failed" and row["ours"] and _key(row) in before
        ],
    )  # fmt: skip


def table(comparison: Comparison, threshold: float) -> str:
    """The comparison as text: a line for each change, then what only one run has."""
    lines = []
    for change in comparison.changes:
        word = _word(change.ratio, threshold)
        lines.append(f"{change.ratio:6.3f}x  {word:7}  {_name(change.row)}")
    for title, rows in (
        ("only in the old run", comparison.only_old),
        ("only in the new run", comparison.only_new),
    ):
        lines += [f"{title}: {_name(row)}" for row in rows]
    lines += [f"fails now: {_name(row)}: {row['reason']}" for row in comparison.broken]
    return "\n".join(lines)


def main(arguments: Arguments) -> None:
    """Print the comparison; status 1 if something of ours became slower, or fails.

    Raises:
        ValueError: runs on different devices, no row in common, a threshold that is not positive.
    """
    if arguments.threshold <= 0:
        raise ValueError(f"--threshold must be above 0, got {arguments.threshold}")
    old, new = read_results(arguments.old), read_results(arguments.new)
    if old["device"] != new["device"] and not arguments.force:
        raise ValueError(
            f"{old['device']} and {new['device']} are different devices, whose times cannot be "
            "compared: add --force to do it all the same"
        )
    comparison = compare(old, new)
    if not comparison.changes and not comparison.broken:
        raise ValueError(f"{arguments.old} and {arguments.new} have no timed row in common")
    print(f"old: {_run(old)}\nnew: {_run(new)}\nnew / old time")
    print(table(comparison, arguments.threshold))
    slower = comparison.slower(arguments.threshold)
    print(
        f"{len(comparison.changes)} compared: {len(slower)} of ours slower by more than "
        f"{arguments.threshold:.0%}, {len(comparison.broken)} of ours failing"
    )
    if slower or comparison.broken:
        sys.exit(1)


def _key(row: ResultRow) -> Key:
    return row["bench"], json.dumps(row["case"], sort_keys=True), row["variant"]


def _by_key(results: Mapping[str, Any]) -> dict[Key, ResultRow]:
    return {_key(row): row for row in results["rows"] if row["status"] == "ok"}


def _median(row: ResultRow) -> float:
    return float(row["seconds"]["median"])


def _name(row: ResultRow) -> str:
    return f"{row['bench']}  {describe(row['case'])}  [{row['variant']}]"


def _word(ratio: float, threshold: float) -> str:
    if ratio > 1 + threshold:
        return "slower"
    return "faster" if ratio < 1 / (1 + threshold) else "same"


def _run(results: Mapping[str, Any]) -> str:
    return f"{results['device']}, {results['date']}, commit {results['commit']}"


if __name__ == "__main__":
    from gpt2.common.cli import run_tool

    run_tool(main, Arguments)
