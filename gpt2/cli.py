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
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _name() -> str | None:
    """`python -m ...` as it was typed; None where it was not."""
    spec = sys.modules["__main__"].__spec__
    return None if spec is None else f"python -m {spec.name.removesuffix('.__main__')}"
