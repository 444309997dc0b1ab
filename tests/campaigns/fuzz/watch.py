"""Limits on one call: processor time, memory used, memory asked for."""

import faulthandler
import resource
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psutil

SECONDS = 10.0
BYTES = 1 << 30
_ASKED = 4 << 30  # address space beyond what is mapped already: more is a MemoryError, not a swap
_STUCK = 300.0  # seconds: a call that never returns to the interpreter heeds no signal


class Exceeded(AssertionError):
    """The call took more than it may."""


class _Hang(BaseException):
    """Not an Exception, so that no parser takes it for bad input."""


@contextmanager
def watched(*, seconds=SECONDS, memory=BYTES, asked=_ASKED):
    """Hold the block to limits: processor time (a busy machine is no hang) and memory.

    By `memory` bytes the resident memory may grow at its peak, which is measured on Linux only;
    `asked` bytes of address space can be allocated before a MemoryError.

    A call that cannot be interrupted ends the process, with a traceback, after five minutes.

    Raises:
        Exceeded: the limit that was broken.
    """

    def hang(number: int, frame: FrameType | None) -> NoReturn:
        raise _Hang

    faulthandler.dump_traceback_later(_STUCK, exit=True, file=sys.__stderr__)
    before = psutil.Process().memory_info()
    if sys.platform == "linux":  # the peak of the resident memory begins at what is resident now
        Path("/proc/self/clear_refs").write_text("5")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGPROF, hang)
    try:
        room = before.vms + asked
        if sys.platform == "linux" and (hard == resource.RLIM_INFINITY or room < hard):
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
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before.rss
    if sys.platform == "linux" and grown > memory:
        raise Exceeded(f"used {grown >> 20} MiB of memory, more than {memory >> 20}")
