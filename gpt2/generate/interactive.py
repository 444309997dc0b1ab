"""A text that a person and a model write in turns, with one key-value cache for all of it.

Each line that is typed is added to the text, after a space where neither side has white space, and
the model goes on until it ends the document, has made its number of tokens, or is stopped by
Ctrl-C. An empty line lets it go on. After the end of a document another one begins.
"""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import torch

from gpt2.common.ranges import check_numbers
from gpt2.generate.decoding import Context, check_prompts, stream_tokens, until
from gpt2.generate.sampling import Sampling, strategy
from gpt2.runs.run import Run

Strategy = Literal["greedy", "sample", "top-k", "top-p", "min-p"]
HELP = """\
Type a text, and the model goes on; an empty line: from where it stopped. Ctrl-C stops it.
/new             begin a new text
/quit            end; so does Ctrl-D
/NAME VALUE      change a setting, now:"""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What can be changed between turns; named and bounded as the options of the command."""

    strategy: Strategy
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    max_tokens: int

    def sampling(self) -> Sampling:
        options: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        del options["max_tokens"]
        return strategy(options.pop("strategy"), **options)

    def changed(self, name: str, value: str) -> "Settings":
        """The settings after `/name value`.

        A number that the strategy does not use chooses the strategy that does.

        Raises:
            ValueError: no such setting, or a value that is no number or out of its range.
        """
        field = name.replace("-", "_")
        kinds = {f.name: type(getattr(self, f.name)) for f in fields(self)}
        if field not in kinds:
            raise ValueError(f"there is no /{name}: /help lists what there is")
        try:
            changes: dict[str, Any] = {field: kinds[field](value)}
        except ValueError:
            kind = "a whole number" if kinds[field] is int else "a number"
            raise ValueError(f"/{name} takes {kind}, got {value!r}") from None
        if name in get_args(Strategy):
            changes["strategy"] = name
        elif name == "temperature" and self.strategy == "greedy":
            changes["strategy"] = "sample"
        new = replace(self, **changes)
        check_numbers(new)
        new.sampling()
        return new

    def __str__(self) -> str:
        return ", ".join(
            f"{f.name.replace('_', '-')} {getattr(self, f.name)}" for f in fields(self)
        )


class _Text:
    """The text so far: what the model has read of it, and whether a word may follow at once."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._context = Context(run.model, [[]])
        self._begun = self._open = False

    def add(self, line: str) -> None:
        """Add a line that was typed; nothing is added if the context cannot hold it."""
        if self._open and line and not line[0].isspace():
            line = f" {line}"
        tokenizer = self._run.tokenizer
        ids = [] if self._begun and not line else tokenizer.encode_prompt(line)
        if ids:
            check_prompts(self._run.model, [ids])
            self._context.extend([ids])
            self._begun, self._open = True, not line[-1:].isspace()

    def go_on(self, settings: Settings, generator: torch.Generator) -> None:
        """Let the model go on, and print what it writes."""
        last, eot_id = -1, self._run.tokenizer.eot_id

        def new() -> Iterator[int]:
            nonlocal last
            tokens = stream_tokens(
                self._run.model,
                self._context,
                settings.max_tokens,
                sampling=settings.sampling(),
                generator=generator,
            )
            for token in tokens:
                last = int(token)
                yield last
                if stopped.is_set():
                    return

        with _interrupt() as stopped:
            for text in self._run.tokenizer.decode_stream(until(new(), eot_id)):
                print(text, end="", flush=True)
                self._open = not text[-1].isspace()
        print(flush=True)
        if last == eot_id:
            self._open = False


def converse(run: Run, settings: Settings, generator: torch.Generator, prompt: str) -> None:
    """Write a text in turns with whoever is at the standard input, until that ends.

    Args:
        run: the model.
        settings: the first ones.
        generator: source of randomness, on the model's device.
        prompt: the beginning of the text, which the model continues at once; empty to be asked.
    """
    text = _Text(run)
    if prompt:
        text.add(prompt)
        print(prompt, end="", flush=True)
        text.go_on(settings, generator)
    for line in _lines():
        command, _, value = line.strip().partition(" ")
        try:
            if command == "/quit":
                return
            if command == "/new":
                text = _Text(run)
            elif command == "/help":
                print(f"{HELP}\n{settings}")
            elif command.startswith("/"):
                settings = settings.changed(command[1:], value.strip())
                print(settings)
            else:
                text.add(line)
                text.go_on(settings, generator)
        except ValueError as error:
            print(error, flush=True)


def _lines() -> Iterator[str]:
    """Lines of the standard input, asked for with a sign and edited where that is a terminal."""
    terminal = sys.stdin.isatty()
    if terminal:
        print("Type a text; /help tells more, Ctrl-D ends.")
        with suppress(ImportError):  # Windows edits without it
            import readline  # noqa: F401
    while True:
        try:
            yield input("> " if terminal else "")
        except EOFError:
            return
        except KeyboardInterrupt:
            print("\nCtrl-D or /quit ends")


@contextmanager
def _interrupt() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets in this block, between two tokens and never within one."""
    stopped = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: stopped.set())
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)
