"""Files that are either whole or absent: atomic writes, checksums, a lock between processes.

Everything is written under a temporary name in the same folder, flushed to the disk, and only then
renamed. So no reader sees half a file, not even after a crash.
"""

import errno
import hashlib
import json
import math
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

_BLOCK = 1 << 20


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Write `path`, in a folder that exists: it holds all that was written, or stays as it was.

    Yields:
        A binary file, open for reading and writing, under a temporary hidden name in the same
        folder. When the block ends it is renamed to `path`; when the block raises it is deleted.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    sync_folder(path.parent)


def sync_folder(folder: str | Path) -> None:
    """Flush a folder's entries to the disk, so that a rename in it survives a power cut."""
    if sys.platform == "win32":  # a folder cannot be opened there; NTFS journals its entries
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: str | Path) -> None:
    """Delete the temporary files of writers that were killed. Call it only under a `lock`."""
    for leftover in Path(folder).glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def write_json(path: str | Path, obj: Any) -> None:
    """Write `obj` atomically as indented UTF-8 JSON with a final newline."""
    text = json.dumps(obj, indent=2, ensure_ascii=False) + "\n"
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))


def read_bytes(path: str | Path, *, limit: float = math.inf) -> bytes:
    """Read a whole file of unknown origin; a ValueError if it cannot be read, is no regular file (a
    folder, a device or a pipe is none), or has more than `limit` bytes."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    try:
        if path.stat().st_size > limit:
            raise ValueError(f"{path} has more than {limit:,} bytes, which is more than is read")
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error


@contextmanager
def with_file_name(path: str | Path) -> Iterator[None]:
    """Add the path to an OSError raised in the block: errors of read() and write() carry none."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def sha256_file(path: str | Path, *, start: int = 0) -> str:
    """The SHA-256 (64 hex digits) of a file's bytes from offset `start` on."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_BLOCK))
    with with_file_name(path), open(path, "rb", buffering=0) as file:
        file.seek(start)
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


@contextmanager
def lock(path: str | Path, *, waiting: str | None = None) -> Iterator[None]:
    """Hold an exclusive lock between processes; the system frees it when its holder dies.

    Args:
        path: the lock file, created when absent and left behind.
        waiting: a line to print before waiting for another process that holds the lock. None does
            not wait.

    Raises:
        TimeoutError: another process holds the lock, and `waiting` is None.
        ValueError: the file system has no locks.
    """
    file_lock = FileLock(path, fallback_to_soft=False)
    try:
        file_lock.acquire(blocking=False)
    except Timeout:
        if waiting is None:
            raise
        print(waiting, flush=True)
        file_lock.acquire()
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        raise ValueError(
            f"{path}: this file system has no locks (flock). Use a folder on another one"
        ) from error
    try:
        yield
    finally:
        file_lock.release()
