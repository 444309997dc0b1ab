"""Progress: a bar on a terminal, and a line now and then in a log file."""

import sys
from typing import Any, TextIO

from tqdm import tqdm

LOG_SECONDS = 30.0  # between two lines in a file


class _Lines:
    """The file that tqdm writes to: each state of a bar becomes a line."""

    def __init__(self, file: TextIO) -> None:
        self._file, self.flush = file, file.flush

    def write(self, state: str) -> None:
        if state := state.strip():
            self._file.write(f"{state}\n")


def progress_bar(enabled: bool, *iterable: Any, **options: Any) -> "tqdm[Any]":
    """A tqdm bar, or a silent stand-in; where stderr is no terminal, a line every 30 seconds."""
    if not sys.stderr.isatty():
        seldom = dict.fromkeys(("mininterval", "maxinterval", "delay"), LOG_SECONDS)
        options |= {"file": _Lines(sys.stderr)} | seldom
    return tqdm(*iterable, disable=not enabled, **options)
