"""How every command starts and fails: options from a dataclass, mistakes as one sentence."""

import sys
from collections.abc import Callable
from typing import TypeVar

import tyro

T = TypeVar("T")


def run_tool(main: Callable[[T], None], arguments: type[T]) -> None:
    """Parse the command line and call `main`; a user's mistake is one sentence and status 2."""
    try:
        main(tyro.cli(arguments, prog=_name()))
    except (ValueError, OSError) as error:
        print(f"error: {_printable(str(error))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _printable(message: str) -> str:
    """A message may quote a file of unknown origin: no control characters, no megabytes."""
    shown = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in message[:4000])
    return shown if len(message) <= 4000 else f"{shown} ..."


def _name() -> str | None:
    """`python -m ...` as it was typed; None where it was not."""
    spec = sys.modules["__main__"].__spec__
    return None if spec is None else f"python -m {spec.name.removesuffix('.__main__')}"
