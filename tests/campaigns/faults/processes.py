"""Commands in forked processes: they need not import PyTorch again, so hundreds can be killed."""

import contextlib
import ctypes
import importlib
import json
import os
import resource
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[3]
LOG = "log.txt"
PATIENCE = 240  # seconds after which a process counts as hung, on a busy machine too


def nothing() -> None:
    """Do nothing: the default of `first`, called in a new process before its command."""


def preload() -> None:
    """Import what training imports late, so that forked processes have it already."""
    import matplotlib

    matplotlib.use("Agg")
    for name in ("gpt2.training.run_training", "gpt2.data.prepare", "torch._dynamo"):
        importlib.import_module(name)
    for name in ("backends.backend_agg", "pyplot"):
        importlib.import_module(f"matplotlib.{name}")


def limit_file_size(size: int) -> None:
    """Let no file of this process grow beyond `size` bytes, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write then fails with EFBIG
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def limit_memory(size: int) -> None:
    """Let this process allocate only `size` bytes more than it has by now."""
    limit = psutil.Process().memory_info().data + size
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def obey_permissions() -> None:
    """Give up root's right to write where the mode of a folder forbids it."""
    if os.geteuid() or sys.platform != "linux":
        return
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # the version of the structure; this thread
    no_capabilities = (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, no_capabilities):
        raise OSError(ctypes.get_errno(), "capset")


def start(
    folder: Path,
    *words: str,
    first: Callable[[], object] = nothing,
    output: Path | str = LOG,
    errors: Path | str = LOG,
) -> psutil.Process:
    """Run `train.py ...`, `-m module ...` or `-c code ...` in `folder`, without input.

    What it prints goes to `folder`/log.txt, unless other files are given. The process leads a group
    of its own, and calls `first` before the command.
    """
    pid = os.fork()
    if pid:
        return psutil.Process(pid)
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, path in ((1, output), (2, errors)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        module = words[0] == "-m"
        sys.argv = list(words[1:] if module else words)
        first()
        if module:
            sys.modules.pop(words[1], None)  # imported before, it is run anew
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        elif words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            exec(words[1], {"__name__": "__main__"})
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


def run(folder: Path, *words: str, first: Callable[[], object] = nothing) -> tuple[int, str]:
    """Run a command to its end; return its exit status and what it printed."""
    log = folder / LOG
    log.unlink(missing_ok=True)
    status = finish(start(folder, *words, first=first))
    return status, log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""


def serve() -> None:
    """Run the commands that come as lines of input: for the tests, whose threads a fork would lose.

    A line has the folder, the words, the files of output and errors, and the environment of each of
    the processes that run the command at once; the answer is a line with their exit statuses.
    """
    preload()
    for line in sys.stdin:
        folder, words, output, errors, environments = json.loads(line)
        started = [
            start(
                Path(folder), *words, first=partial(_become, environment),
                output=output, errors=errors,
            )
            for environment in environments
        ]  # fmt: skip
        print(json.dumps([_outcome(process) for process in started]), flush=True)


def _become(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)


def _outcome(process: psutil.Process) -> int | str:
    try:
        return finish(process)
    except TimeoutError as error:
        return str(error)


def wait_for(process, condition, *, patience=PATIENCE):
    """Wait until the condition holds or the process has ended; return whether it holds.

    Raises:
        TimeoutError: neither happened within `patience` seconds; the process is killed.
    """
    end = time.monotonic() + patience
    while not condition():
        if process.status() == psutil.STATUS_ZOMBIE:
            return condition()
        if time.monotonic() > end:
            stop(process)
            raise TimeoutError(f"process {process.pid} did not get as far within {patience} s")
        time.sleep(0.005)
    return True


def finish(process: psutil.Process) -> int:
    """Wait for the end of a process; return its exit code, or minus the signal that ended it.

    Raises:
        TimeoutError: it hung, and was killed.
    """
    try:
        return int(process.wait(PATIENCE))
    except psutil.TimeoutExpired as error:
        stop(process)
        process.wait()
        raise TimeoutError(f"process {process.pid} did not end within {PATIENCE} s") from error


def stop(process: psutil.Process, number: int = signal.SIGKILL) -> None:
    """Send a signal to a process; SIGKILL goes to the processes that it has started, too."""
    if number == signal.SIGKILL:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def kill_survivors(processes: Sequence[psutil.Process], *, patience: float) -> list[psutil.Process]:
    """Kill and return the processes that still run after `patience` seconds."""
    _, alive = psutil.wait_procs(processes, timeout=max(0.0, patience))
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return alive
