"""The start of every command: options from a dataclass, a user's mistake as one sentence."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import tyro

from gpt2.common.load import sleeping_under_load
from gpt2.common.ranges import check_numbers

T = TypeVar("T")


def run_tool(
    main: Callable[[T], None],
    arguments: type[T],
    *,
    description: str | None = None,
    failures: tuple[type[Exception], ...] = (),
) -> None:
    """Parse the command line, check its numbers (`gpt2.common.ranges`) and call `main`.

    A user's mistake is one sentence and status 2.

    Args:
        main: the command.
        arguments: dataclass of its options.
        description: heads its help; None takes the docstring of `arguments`.
        failures: see `failing_plainly`.
    """
    with failing_plainly(*failures):
        options = tyro.cli(arguments, prog=_name(), description=description)
        check_numbers(options)
        main(options)


@contextmanager
def failing_plainly(*failures: type[Exception]) -> Iterator[None]:
    """End the process with one sentence for a ValueError, an OSError or one of `failures`.

    Meanwhile its threads sleep under load (gpt2/common/load.py).
    """
    known: tuple[type[Exception], ...] = (ValueError, OSError, *failures)
    try:
        with sleeping_under_load():
            yield
    except known as error:
        print(f"error: {_printable(str(error))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _printable(message: str) -> str:
    """Escape control characters and shorten: a message may quote a file of unknown origin."""
    shown = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in message[:4000])
    return shown if len(message) <= 4000 else f"{shown} ..."


def _name() -> str | None:
    """The command as `python -m ...`; None if it was started otherwise."""
    spec = sys.modules["__main__"].__spec__
    return None if spec is None else f"python -m {spec.name.removesuffix('.__main__')}"
