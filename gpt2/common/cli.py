"""The start of every command: options from a dataclass, a user's mistake as one sentence."""

import ast
import dataclasses
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from shutil import get_terminal_size
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

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
    decided: Mapping[str, str] | None = None,
) -> None:
    """Parse the command line, check its numbers (`gpt2.common.ranges`) and call `main`.

    A user's mistake is one sentence and status 2.

    Args:
        main: the command.
        arguments: dataclass of its options.
        description: heads its help; None takes the docstring of `arguments`.
        failures: see `failing_plainly`.
        decided: what decides an option that is None, and its values; by the option's field.
    """
    with failing_plainly(*failures):
        if {"-h", "--help"} & set(sys.argv[1:]):
            heading = description or arguments.__doc__ or ""
            print(help_text(arguments, heading, decided or {}, get_terminal_size().columns))
            return
        options = tyro.cli(arguments, prog=_name(), description=description)
        check_numbers(options)
        main(options)


def given_options(arguments: type[Any]) -> set[str]:
    """The fields of a dataclass of options that the command line names, whatever their values."""
    words = {word.partition("=")[0] for word in sys.argv[1:] if word.startswith("--")}
    names = {word[2:].replace("-", "_").removeprefix("no_") for word in words}
    return names & {field.name for field in dataclasses.fields(arguments)}


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


def help_text(arguments: type[Any], heading: str, decided: Mapping[str, str], width: int) -> str:
    """The help of a command, in lines of at most `width` characters where words allow it.

    Options stand under the heading that a comment `# --- heading ---` above their fields gives.
    Paragraphs of `heading` with a line that begins with spaces or `python` are kept as they are.
    """
    groups: dict[str, list[str]] = {}
    written = _written(arguments)
    kinds = get_type_hints(arguments, include_extras=True)
    for field in dataclasses.fields(arguments):
        if field.name not in written:
            continue
        group, text = written[field.name]
        option = "--" + field.name.replace("_", "-")
        kind = kinds[field.name]
        if tyro.conf.Suppress in get_args(kind):
            continue
        if tyro.conf.Positional in get_args(kind):
            group, option = "what to work on", field.name.upper()
        else:
            option = f"{option}{_values(kind)}"
            if bool in (kind, *get_args(kind)):
                option += f", --no-{option[2:]}"
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if field.name in decided:
            text = re.sub(r"\s*None: (?:the preset's|a tenth)[^.]*\.", "", text)
            text += f" [{decided[field.name]}]"
        elif default is dataclasses.MISSING:
            text += " [required]"
        elif default not in (None, ()):
            shown = ("off", "on")[default] if isinstance(default, bool) else default
            text += f" [{shown}]"
        lines = textwrap.wrap(text, max(20, width - 8), break_on_hyphens=False)
        groups.setdefault(group, []).append("\n        ".join([f"    {option}", *lines]))
    groups.setdefault("options", []).append("    -h, --help\n        Show this.")
    head = [
        part if re.search(r"^(\s|python)", part, re.MULTILINE) else textwrap.fill(part, width)
        for part in inspect.cleandoc(heading).split("\n\n")
    ]
    return "\n\n".join([*head, *("\n".join([g, *groups[g]]) for g in groups)])


def _written(arguments: type[Any]) -> dict[str, tuple[str, str]]:
    """Heading and docstring of each field of a dataclass, as its source has them."""
    found: dict[str, tuple[str, str]] = {}
    for owner in reversed(arguments.__mro__[:-1]):
        source = textwrap.dedent(inspect.getsource(owner))
        (body,) = (node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
        headings = [
            (number, match[1])
            for number, line in enumerate(source.splitlines(), 1)
            if (match := re.match(r"    # --- (\w[\w ]*\w)", line))
        ]
        for node, after in pairwise(body):
            if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr):
                text = inspect.cleandoc(ast.literal_eval(after.value)).replace("\n", " ")
                group = [name for number, name in headings if number < node.lineno]
                assert isinstance(node.target, ast.Name)
                found[node.target.id] = (group[-1] if group else "options", text)
    return found


def _values(kind: Any) -> str:
    """What an option takes, to stand behind its name; nothing for a flag."""
    parts = [part for part in get_args(kind) if part is not type(None)]
    if get_origin(kind) is Literal:
        return f" {'|'.join(map(str, parts))}"
    if get_origin(kind) is tuple:
        return f"{_values(parts[0])} ..."
    if parts:  # of a union or an annotation the first says enough
        return _values(parts[0])
    return "" if kind is bool else f" {'TEXT' if kind is str else kind.__name__.upper()}"


def _name() -> str | None:
    """The command as `python -m ...`; None if it was started otherwise."""
    spec = sys.modules["__main__"].__spec__
    return None if spec is None else f"python -m {spec.name.removesuffix('.__main__')}"
