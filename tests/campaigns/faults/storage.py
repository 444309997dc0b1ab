"""Disks that are full or write-protected, and files that are damaged or where others belong."""

import itertools
import os
import random
import shutil
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gpt2.training.trainer import Trainer
from tests.campaigns.faults.processes import (
    LOG,
    finish,
    limit_file_size,
    obey_permissions,
    run,
    start,
    wait_for,
)
from tests.campaigns.faults.workplace import MODEL, Attempt, Workplace, curve, refused, weights


def disk_full(place: Workplace) -> Iterator[Attempt]:
    """No file may grow beyond a random size: a clear end, and all is well with room again."""
    while True:
        shutil.rmtree(place.folder / "full", ignore_errors=True)
        size = place.random.choice([100, 1_000, 5_000, 20_000, 60_000, 100_000, 150_000])
        status, said = run(
            place.folder, "train.py", *MODEL, "--out", "full", first=limit_file_size(size)
        )
        if status == 0:
            yield place.trained("full")
        elif len(said.encode()) < size and (loss := refused(status, said, "")):
            yield f"with files limited to {size} bytes: {loss}"  # if the log was not full, too
        elif list((place.folder / "full/checkpoints").glob("step-*")):
            yield place.resume("full")
        else:
            yield None


def write_protected(place: Workplace) -> Iterator[Attempt]:
    """The run folder or the data cache: named, nothing lost, and gone on with once it is not."""
    half_done(place, "half", *MODEL)
    kept = shutil.copytree(place.folder / "half", place.folder / "kept")
    cases = [_new_run, _new_cache, _prepared_cache, _in_training, _resumed]
    while True:
        place.random.shuffle(cases)
        for case in cases:
            for name in ("protected", "cache", "half"):
                shutil.rmtree(place.folder / name, ignore_errors=True)
            shutil.copytree(kept, place.folder / "half")
            loss = case(place)
            yield loss and f"{case.__name__[1:]}: {loss}"


def _new_run(place: Workplace) -> Attempt:
    parent = place.folder / "protected"
    parent.mkdir()
    words = ["train.py", *MODEL, "--out", "protected/run"]
    with _read_only(parent):
        status, said = run(place.folder, *words, first=obey_permissions)
    loss = refused(status, said, "protected")
    return loss or _run_now(place, words, "protected/run")


def _new_cache(place: Workplace) -> Attempt:
    cache = place.folder / "cache"
    cache.mkdir()
    words = ["train.py", *MODEL, "--out", "protected", "--cache-dir", "cache"]
    with _read_only(cache):
        status, said = run(place.folder, *words, first=obey_permissions)
    loss = refused(status, said, "cache")
    return loss or _run_now(place, words, "protected")


def _prepared_cache(place: Workplace) -> Attempt:
    """Data that others have prepared is read, and needs no writing."""
    with _read_only(place.folder / "data"):
        words = ["train.py", *MODEL, "--out", "protected"]
        return _run_now(place, words, "protected", first=obey_permissions)


def _in_training(place: Workplace) -> Attempt:
    run_folder, log = place.folder / "protected", place.folder / LOG
    log.unlink()
    words = ["train.py", *MODEL, "--out", "protected"]
    pid = start(place.folder, *words, first=obey_permissions)
    step = place.random.randrange(5, 40, 5)
    wait_for(pid, (run_folder / f"checkpoints/step-{step:06d}").exists)
    with _read_only(run_folder):
        status = finish(pid)
    if status:
        said = log.read_text(encoding="utf-8")
        loss = refused(status, said, "protected")
        return loss or place.resume("protected")
    return place.trained("protected")  # it was through


def _resumed(place: Workplace) -> Attempt:
    with _read_only(place.folder / "half"):
        status, said = run(place.folder, "train.py", "--resume", "half", first=obey_permissions)
    loss = refused(status, said, "half")
    return loss or place.resume("half")


def _run_now(
    place: Workplace, words: list[str], name: str, first: Callable[[], object] = lambda: None
) -> Attempt:
    status, said = run(place.folder, *words, first=first)
    return f"did not run: {said[-300:]!r}" if status else place.trained(name)


@contextmanager
def _read_only(folder: Path) -> Iterator[None]:
    """Take the right to write from all that is in a folder, while it is being written."""
    everything = [folder]
    for path in everything:  # grows on the way
        mode = stat.S_IMODE(path.stat().st_mode)
        path.chmod(mode & ~0o222)
        if path.is_dir():
            everything += path.iterdir()
    try:
        yield
    finally:
        for path in everything:
            path.chmod(stat.S_IMODE(path.stat().st_mode) | 0o200)


def half_done(place: Workplace, name: str, *words: str) -> None:
    """A run that was killed after step 20 of 40."""

    def die_half_way() -> None:
        save = Trainer.save

        def save_and_die(self: Trainer, val_loss: float | None) -> None:
            save(self, val_loss)
            if self.step == 20:
                os.kill(os.getpid(), signal.SIGKILL)

        Trainer.save = save_and_die  # type: ignore[method-assign]

    status, said = run(place.folder, "train.py", *words, "--out", name, first=die_half_way)
    assert status == -signal.SIGKILL, said


def _judge(place: Workplace, name: str, status: int, said: str, *names: str) -> Attempt:
    """What came of resuming a run with files that are wrong.

    Either it was refused by one of the names, or it trained as if undisturbed; only metrics.jsonl,
    which training does not depend on, may be wrong afterwards, if that was said.
    """
    if status:
        return refused(status, said, *names)
    if weights(place.folder / name) != place.weights:
        return "trained on, to other weights"
    if curve(place.folder / name) != place.curve and "metrics.jsonl is not what it was" not in said:
        return "trained on, and kept other losses, without a word"
    return None


_DAMAGES: dict[str, Callable[[bytes, random.Random], bytes | None]] = {
    "truncated": lambda b, r: b[: r.randrange(len(b))],
    "a bit flipped": lambda b, r: _flip(b, r.randrange(8 * len(b))),
    "emptied": lambda b, r: b"",
    "missing": lambda b, r: None,
    "overwritten": lambda b, r: r.randbytes(len(b)),
}


def _flip(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def damaged_files(place: Workplace) -> Iterator[Attempt]:
    """Any file of a half-done run damaged: it is named, or it did not matter to the result."""
    half_done(place, "half", *MODEL)
    files = _Files(place.folder, "half", "data")
    while True:
        for name, damage in _DAMAGES.items():
            files.restore()
            path = place.random.choice(files.all)
            content = damage(path.read_bytes(), place.random)
            path.unlink()
            if content is not None:
                path.write_bytes(content)
            status, said = run(place.folder, "train.py", "--resume", "half")
            loss = _judge(place, "half", status, said, path.name, f"{path.parent.name}:")
            yield loss and f"{path.relative_to(place.folder)} {name}: {loss}"


class _Files:
    """Some folders as they are now, to be put back after each attempt."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.folder, self.names = folder, names
        self.kept = folder / "kept"
        for name in names:
            shutil.copytree(folder / name, self.kept / name)

    @property
    def all(self) -> list[Path]:
        """The files that hold anything but a plot."""
        return sorted(
            path
            for name in self.names
            for path in (self.folder / name).rglob("*")
            if path.is_file() and path.stat().st_size and path.suffix != ".png"
        )

    def restore(self) -> None:
        for name in self.names:
            shutil.rmtree(self.folder / name)
            shutil.copytree(self.kept / name, self.folder / name)


def swapped_files(place: Workplace) -> Iterator[Attempt]:
    """Files and folders that change places, within a run or with another run or data set.

    The others are a run of the same model from another seed, and one on another text. When the run
    is refused, it must go on once all is back in its place.
    """
    text = (place.folder / "stories.txt").read_text(encoding="utf-8")
    (place.folder / "fables.txt").write_text(
        text.replace("cat", "fox").replace("ran home", "could not fly"), encoding="utf-8"
    )
    half_done(place, "half", *MODEL)
    half_done(place, "seed", *MODEL, "--seed", "7")
    half_done(place, "fables", *MODEL, "--data", "fables.txt")
    files = _Files(place.folder, "half", "seed", "fables", "data")
    while True:
        files.restore()
        shutil.rmtree(place.folder / "new", ignore_errors=True)
        of_run, of_data = _pairs_of_run(place.folder), _pairs_of_data(place.folder)
        one, other = place.random.choice(place.random.choice([of_run, of_data]))
        name, words = "half", ["--resume", "half"]
        if (one, other) in of_data and place.random.random() < 0.5:
            name, words = "new", [*MODEL, "--out", "new"]
        _swap(one, other)
        status, said = run(place.folder, "train.py", *words)
        loss = _judge(place, name, status, said, one.name, other.name)
        if loss is None and status:
            _swap(one, other)
            status, said = run(place.folder, "train.py", *words)
            loss = f"put back again: {said[-300:]!r}" if status else place.trained(name)
        paths = (str(path.relative_to(place.folder)) for path in (one, other))
        yield loss and f"{' and '.join(paths)}, {' '.join(words[:2])}: {loss}"


def _swap(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


_Pairs = list[tuple[Path, Path]]


def _pairs_of_run(folder: Path) -> _Pairs:
    """What of the half-done run can change places with what."""
    half, runs = folder / "half", (folder / "seed", folder / "fables")
    newest, before = "checkpoints/step-000020", "checkpoints/step-000015"
    parts = [path.name for path in sorted((half / newest).iterdir())]
    names = ["config.json", "tokenizer.json", "metrics.jsonl", "checkpoints", newest]
    names += [f"{newest}/{part}" for part in parts]
    within = [(half / newest / part, half / before / part) for part in ("", *parts)]
    between = [(half / name, run / name) for name in names for run in runs]
    return [*within, *between, (folder / "stories.txt", folder / "fables.txt")]


def _pairs_of_data(folder: Path) -> _Pairs:
    """What of the data of the half-done run can change places with what."""
    data = folder / "data"
    (own,), (other,) = (list(data.glob(f"{name}-*/")) for name in ("stories", "fables"))
    trained = [next((data / "tokenizers").glob(f"{name}-*/")) for name in ("stories", "fables")]
    parts = [path.name for path in sorted(own.iterdir())]
    shards = [own / part for part in parts if part.endswith(".bin")]
    return [
        (own, other),
        *((own / part, other / part) for part in parts),
        *itertools.combinations(shards, 2),
        (trained[0], trained[1]),
        *((trained[0] / path.name, trained[1] / path.name) for path in trained[0].iterdir()),
    ]
