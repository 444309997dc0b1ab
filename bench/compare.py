"""Comparison of two runs on one device: new over old median seconds of every variant in both.

    python -m bench.compare OLD.json NEW.json --threshold 0.05

prints the ratios, slowest change first. The status is 1 if a variant of ours became slower by more
than the threshold, or fails now. Peers are shown but do not affect the status.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from bench.harness.results import ResultRow, describe, read_results


@dataclass(frozen=True)
class Arguments:
    """Compare two runs on one device."""

    old: Positional[Path]
    """Result file of the earlier run."""
    new: Positional[Path]
    """Result file of the later run."""
    threshold: float = 0.05
    """Relative change of the time above which a variant counts as slower."""
    force: bool = False
    """Compare runs on different devices all the same."""


def compare(
    old: Mapping[str, Any], new: Mapping[str, Any], threshold: float
) -> tuple[list[str], bool]:
    """Compare two result files, as `read_results` returns them.

    Returns:
        A line for each variant, and True if one of ours became slower or fails now.
    """
    before, after = ({_name(row): row for row in results["rows"]} for results in (old, new))
    ratios, others, worse = [], [], False
    for name in before | after:
        times = [_median(rows.get(name)) for rows in (before, after)]
        row = after[name] if name in after else before[name]
        if times[0] and times[1]:
            ratio = times[1] / times[0]
            slower = ratio > 1 + threshold
            word = "slower" if slower else "faster" if ratio * (1 + threshold) < 1 else "same"
            ratios.append((-ratio, f"{ratio:6.3f}x  {word:7}  {name}"))
            worse |= slower and row["ours"]
        elif times[0] and row["status"] == "failed":
            others.append(f"fails now: {name}: {row['reason']}")
            worse |= row["ours"]
        elif any(times):
            others.append(f"only in the {'old' if times[0] else 'new'} run: {name}")
    return [line for _, line in sorted(ratios)] + others, worse


def main(arguments: Arguments) -> None:
    """Print the comparison.

    Raises:
        SystemExit: with status 1, if something of ours became slower or fails.
        ValueError: runs on different devices, no variant in common.
    """
    old, new = read_results(arguments.old), read_results(arguments.new)
    if old["device"] != new["device"] and not arguments.force:
        raise ValueError(
            f"{old['device']} and {new['device']} are different devices, whose times cannot be "
            "compared: add --force to do it all the same"
        )
    lines, worse = compare(old, new, arguments.threshold)
    if all(line.startswith("only") for line in lines):
        raise ValueError(f"{arguments.old} and {arguments.new} have no timed row in common")
    for name, run in (("old", old), ("new", new)):
        print(f"{name}: {run['device']}, {run['date']}, commit {run['commit']}")
    print("new / old time", *lines, sep="\n")
    if worse:
        sys.exit(1)


def _name(row: ResultRow) -> str:
    return f"{row['bench']}  {describe(row['case'])}  [{row['variant']}]"


def _median(row: ResultRow | None) -> float | None:
    return float(row["seconds"]["median"]) if row and row["status"] == "ok" else None


if __name__ == "__main__":
    from gpt2.common.cli import run_tool

    run_tool(main, Arguments)
