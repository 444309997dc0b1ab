"""Commands in forked processes: no time is lost on imports, so that hundreds can be killed."""

import os
import resource
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOG = "log.txt"


def limit_file_size(size: int) -> Callable[[], None]:
    """A disk that is full: no file of the process can grow beyond `size` bytes."""

    def apply() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write then fails with EFBIG
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return apply


def start(folder: Path, *words: str, first: Callable[[], object] = lambda: None) -> int:
    """Run `train.py ...` or `-m module ...` in `folder`; its output goes to `folder`/log.txt.

    Args:
        folder: working folder.
        words: the command line after `python`.
        first: called in the new process before the command.

    Returns:
        The process id; the process leads a group of its own.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        module = words[0] == "-m"
        sys.argv = list(words[1:] if module else words)
        first()
        if module:
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                code = code or 1
        os._exit(code)


def finish(pid: int, *, patience: float = 120) -> int:
    """The exit status of a process: its code, or minus the signal that ended it.

    Raises:
        TimeoutError: it hangs; it is killed then.
    """
    end = time.monotonic() + patience
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    stop(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise TimeoutError(f"process {pid} did not end within {patience} s")


def stop(pid: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to the process, and a deadly one to its helpers too."""
    try:
        if number == signal.SIGKILL:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)
    except ProcessLookupError:
        pass


def run(folder: Path, *words: str, first: Callable[[], object] = lambda: None) -> tuple[int, str]:
    """Run a command to its end: exit status, and what it printed."""
    log = folder / LOG
    log.unlink(missing_ok=True)
    status = finish(start(folder, *words, first=first))
    return status, log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
