"""Commands in forked processes: no time is lost on imports, so that hundreds can be killed."""

import ctypes
import importlib
import os
import re
import resource
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
LOG = "log.txt"
PATIENCE = 240  # seconds after which a process hangs, also on a busy machine


def preload() -> None:
    """Import what training imports late, so that forked processes have it."""
    import matplotlib

    matplotlib.use("Agg")
    for name in (
        "gpt2.training.run_training",
        "gpt2.data.prepare",
        "matplotlib.backends.backend_agg",
        "matplotlib.pyplot",
        "torch._dynamo",
    ):
        importlib.import_module(name)


def limit_file_size(size: int) -> Callable[[], None]:
    """A disk that is full: no file of the process can grow beyond `size` bytes."""

    def apply() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write then fails with EFBIG
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return apply


def limit_memory(size: int) -> Callable[[], None]:
    """Memory that is short: the process can allocate `size` bytes more than it has by now."""

    def apply() -> None:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        has = re.search(r"VmData:\s+(\d+) kB", status)
        assert has
        limit = 1024 * int(has[1]) + size
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    return apply


def obey_permissions() -> None:
    """Give up the right of root to write where the mode of a folder forbids it."""
    if os.geteuid() or sys.platform != "linux":
        return
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # the version of the structure; this thread
    nothing = (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, nothing):
        raise OSError(ctypes.get_errno(), "capset")


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
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
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


def wait_for(pid: int, condition: Callable[[], bool], *, patience: float = PATIENCE) -> bool:
    """Wait until the condition holds, or the process has ended; whether it held.

    Raises:
        TimeoutError: neither within so many seconds.
    """
    end = time.monotonic() + patience
    while not condition():
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return condition()
        if time.monotonic() > end:
            stop(pid)
            raise TimeoutError(f"process {pid} did not get as far within {patience} s")
        time.sleep(0.005)
    return True


def finish(pid: int) -> int:
    """The exit status of a process: its code, or minus the signal that ended it.

    Raises:
        TimeoutError: it hangs; it is killed then.
    """
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    stop(pid)
    os.waitpid(pid, 0)
    raise TimeoutError(f"process {pid} did not end within {PATIENCE} s")


def stop(pid: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to the process, and a deadly one to its helpers too."""
    try:
        if number == signal.SIGKILL:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)
    except ProcessLookupError:
        pass


def helpers(pid: int) -> list[int]:
    """The processes that a process has started, and those that they have started."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        stat = _stat(int(path.name))
        if stat:
            children.setdefault(int(stat[1]), []).append(int(path.name))
    found = children.get(pid, [])
    for child in found:  # grows on the way
        found += children.get(child, [])
    return found


def survivors(pids: list[int], patience: float) -> list[int]:
    """Those that still run after so many seconds; they are killed."""
    end = time.monotonic() + patience
    while alive := [pid for pid in pids if (stat := _stat(pid)) and stat[0] not in "ZX"]:
        if time.monotonic() > end:
            for pid in alive:
                os.kill(pid, signal.SIGKILL)
            return alive
        time.sleep(0.02)
    return []


def _stat(pid: int) -> list[str] | None:
    """State, parent and more of a process, as in man 5 proc; None when there is none."""
    try:
        content = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return content.rpartition(")")[2].split()


def run(folder: Path, *words: str, first: Callable[[], object] = lambda: None) -> tuple[int, str]:
    """Run a command to its end: exit status, and what it printed."""
    log = folder / LOG
    log.unlink(missing_ok=True)
    status = finish(start(folder, *words, first=first))
    return status, log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
