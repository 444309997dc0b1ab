"""The search by hypothesis for examples that break a property."""

import itertools
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis.database import DirectoryBasedExampleDatabase

DATABASE = Path(__file__).resolve().parents[2] / ".hypothesis/campaigns"
# Examples between two looks at the clock. From the eleventh on, hypothesis would vary each one
# several times, in place of others.
_ROUND = 10
ALL_PHASES = (Phase.reuse, Phase.generate, Phase.shrink)


@dataclass
class Found:
    """The outcome of a search: how many examples were tried, and for how many the check was True.

    Each cause of a failure has one message, with the smallest example that hypothesis found.
    """

    tried: int = 0
    accepted: int = 0
    failures: list[str] = field(default_factory=list)


def search(name, examples, check, budget, *, seed=0, phases=ALL_PHASES):
    """Try examples until one fails or the budget is spent.

    Failing examples are kept in .hypothesis/, under the name, and tried first the next time;
    not without Phase.reuse. Without Phase.shrink, a failing example stays as it was met.
    `check` raises an exception for an example that breaks the property; see also `Found`.
    """
    found = Found()
    database = DirectoryBasedExampleDatabase(DATABASE / name) if Phase.reuse in phases else None
    for number in itertools.count(seed << 32):
        configured = hypothesis.settings(
            max_examples=min(_ROUND, (budget.tries or sys.maxsize) - found.tried),
            deadline=None, database=database, phases=phases,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip

        def holds(example: Any) -> None:
            found.tried += 1
            found.accepted += check(example) is True

        try:
            configured(hypothesis.seed(number)(hypothesis.given(examples)(holds)))()
        except Exception as error:
            # Several causes come as one group.
            found.failures += map(_message, getattr(error, "exceptions", [error]))
        if found.failures or not budget.left(found.tried):
            return found
    raise AssertionError


def search_each(options, short, seconds, search_one):
    """Search for failures of each property in turn with `search_one`, and print them.

    Args:
        options: say how long, and which of the properties.
        short: by name, how many examples of each property the short form tries.
        seconds: duration of the long form.
        search_one: takes a name, its budget and the seed.
    """
    names = options.chosen(short)
    results = {}
    for name in names:
        budget = options.budget(short[name], None, shares=len(names), seconds=seconds)
        results[name] = found = search_one(name, budget, options.seed)
        for failure in found.failures:
            print(f"FAILED: {name}: {failure}")
        print(f"{name}: {found.tried:,} tried, {len(found.failures)} failed", flush=True)
    return results


def _message(error: BaseException) -> str:
    return "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])
