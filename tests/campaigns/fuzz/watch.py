"""Limits on one call: processor time, memory that was really used, memory that was asked for."""

import faulthandler
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

SECONDS = 10.0
BYTES = 1 << 30
_ASKED = 4 << 30  # address space beyond what is mapped already: more is a MemoryError, not a swap
_STUCK = 300.0  # seconds: a call that never returns to the interpreter heeds no signal
_STATUS = Path("/proc/self/status")


class Exceeded(AssertionError):
    """The call took more than it may."""


class _Hang(BaseException):
    """Not an Exception, so that no parser takes it for bad input."""


@contextmanager
def watched(*, seconds: float = SECONDS, memory: int = BYTES) -> Iterator[None]:
    """Hold the block to limits.

    Args:
        seconds: of processor time, so that a busy machine is no hang.
        memory: bytes by which the resident memory may grow at its peak; measured on Linux only.

    A call that cannot be interrupted ends the process, with a traceback, after five minutes.

    Raises:
        Exceeded: the limit that was broken.
    """

    def hang(number: int, frame: FrameType | None) -> NoReturn:
        raise _Hang

    faulthandler.dump_traceback_later(_STUCK, exit=True, file=sys.__stderr__)
    before = _reset_peak()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGPROF, hang)
    try:
        room = _mapped() + _ASKED
        if hard == resource.RLIM_INFINITY or room < hard:
            resource.setrlimit(resource.RLIMIT_AS, (room, hard))
        # Again and again, as an exception in a callback of the interpreter's own is ignored.
        signal.setitimer(signal.ITIMER_PROF, seconds, 1.0)
        yield
    except _Hang:
        raise Exceeded(f"took more than {seconds:g} s of processor time") from None
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_PROF, 0)
        # Not the default, which would end the process if the last signal came late.
        signal.signal(signal.SIGPROF, signal.SIG_IGN if handler == signal.SIG_DFL else handler)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    grown = _status("VmHWM") - before
    if grown > memory:
        raise Exceeded(f"used {grown >> 20} MiB of memory, more than {memory >> 20}")


def _reset_peak() -> int:
    """Forget the peak of the resident memory, and return what is resident now."""
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _mapped() -> int:
    return _status("VmSize")


def _status(name: str) -> int:
    """Bytes of an entry of /proc/self/status; 0 where there is none."""
    if sys.platform != "linux":
        return 0
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) << 10
