"""Signals that ask a training to end: the step at hand is finished and saved first."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from gpt2.logs import say


@contextmanager
def catching() -> Iterator[list[int]]:
    """A list that the first signal to end is put into; the second one acts as usual."""
    caught: list[int] = []
    names = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if os.name == "posix" else [])]

    def catch(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        for name in names:
            signal.signal(name, signal.SIG_DFL)
        say(
            f"{signal.Signals(number).name}: finishing this step and saving; once more ends at once"
        )

    before = [signal.signal(name, catch) for name in names]
    try:
        yield caught
    finally:
        for name, handler in zip(names, before, strict=True):
            signal.signal(name, handler)
