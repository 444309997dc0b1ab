"""Disks that are full or write-protected, and files that are damaged or where others belong."""

import itertools
import os
import random
import shutil
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from gpt2.training.trainer import Trainer
from tests.campaigns.faults import processes
from tests.campaigns.faults.processes import LOG, finish, run, start, wait_for
from tests.campaigns.faults.workplace import MODEL, Attempt, Workplace, curve, refused, weights


def disk_full(place: Workplace) -> Iterator[Attempt]:
    """Limit the size of all files: training ends with a message, and resumes with room again."""
    while True:
        shutil.rmtree(place.folder / "full", ignore_errors=True)
        size = place.random.choice([100, 1_000, 5_000, 20_000, 60_000, 100_000, 150_000])
        words = ["train.py", *MODEL, "--out", "full"]
        status, said = run(place.folder, *words, first=partial(processes.limit_file_size, size))
        log_has_room = len(said.encode()) < size
        if status == 0:
            yield place.trained("full")
        elif log_has_room and (wrong := refused(status, said, "")):
            yield f"with files limited to {size} bytes: {wrong}"
        elif list((place.folder / "full/checkpoints").glob("step-*")):
            yield place.resume("full")
        else:
            yield None


def write_protected(place: Workplace) -> Iterator[Attempt]:
    """Protect the run folder or the data cache: it is named, and training resumes without."""
    half_done(place, "half", *MODEL)
    kept = _keep(place)
    cases = [*_PROTECTED, ""]
    while True:
        place.random.shuffle(cases)
        for folder in cases:
            _restore(place, kept)
            wrong = _from_the_start(place, folder) if folder else _in_training(place)
            yield wrong and f"{folder or 'in training'}: {wrong}"


# By the folder that is protected: the run, and the options of train.py.
_PROTECTED = {
    "protected": ("protected/run", [*MODEL, "--out", "protected/run"]),
    "cache": ("protected", [*MODEL, "--out", "protected", "--cache-dir", "cache"]),
    "data": ("protected", [*MODEL, "--out", "protected"]),
    "half": ("half", ["--resume", "half"]),
}


def _from_the_start(place: Workplace, folder: str) -> Attempt:
    """Start or resume a run without the right to write into a folder, then with it."""
    name, words = _PROTECTED[folder]
    (place.folder / folder).mkdir(exist_ok=True)
    with _read_only(place.folder / folder):
        if folder == "data":  # is prepared already
            return place.run_now(name, *words, first=processes.obey_permissions)
        status, said = run(place.folder, "train.py", *words, first=processes.obey_permissions)
    return refused(status, said, folder) or place.run_now(name, *words)


def _in_training(place: Workplace) -> Attempt:
    run_folder, log = place.folder / "protected", place.folder / LOG
    log.unlink()
    words = ["train.py", *MODEL, "--out", "protected"]
    process = start(place.folder, *words, first=processes.obey_permissions)
    step = place.random.randrange(5, 40, 5)
    wait_for(process, (run_folder / f"checkpoints/step-{step:06d}").exists)
    with _read_only(run_folder):
        status = finish(process)
    if status == 0:  # it ended before
        return place.trained("protected")
    said = log.read_text(encoding="utf-8")
    return refused(status, said, "protected") or place.resume("protected")


@contextmanager
def _read_only(folder: Path) -> Iterator[None]:
    """Take the right to write from everything in a folder, while it is being written."""
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
    """Train a run that is killed after step 20 of 40."""

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
    """Judge a command that met wrong files.

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


def _keep(place: Workplace) -> Path:
    """Copy the folder as it is now; return the copy."""
    return Path(shutil.copytree(place.folder, place.folder.with_name(f"{place.folder.name}-kept")))


def _restore(place: Workplace, kept: Path) -> None:
    shutil.rmtree(place.folder)
    shutil.copytree(kept, place.folder)


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
    """Damage any file of a half-done run: it is named, or it did not matter to the result."""
    half_done(place, "half", *MODEL)
    kept = _keep(place)
    files = [
        path.relative_to(kept)
        for path in sorted([*(kept / "half").rglob("*"), *(kept / "data").rglob("*")])
        if path.is_file() and path.stat().st_size and path.suffix != ".png"
    ]
    while True:
        for name, damage in _DAMAGES.items():
            _restore(place, kept)
            path = place.folder / place.random.choice(files)
            content = damage(path.read_bytes(), place.random)
            path.unlink()
            if content is not None:
                path.write_bytes(content)
            status, said = run(place.folder, "train.py", "--resume", "half")
            wrong = _judge(place, "half", status, said, path.name, f"{path.parent.name}:")
            yield wrong and f"{path.relative_to(place.folder)} {name}: {wrong}"


def swapped_files(place: Workplace) -> Iterator[Attempt]:
    """Swap files and folders within a run, or with those of another run or data set.

    The others are a run of the same model from another seed, and one on another text. Where the
    command is refused, it must succeed once everything is back in its place.
    """
    text = (place.folder / "stories.txt").read_text(encoding="utf-8")
    (place.folder / "fables.txt").write_text(
        text.replace("cat", "fox").replace("ran home", "could not fly"), encoding="utf-8"
    )
    half_done(place, "half", *MODEL)
    half_done(place, "seed", *MODEL, "--seed", "7")
    half_done(place, "fables", *MODEL, "--data", "fables.txt")
    kept = _keep(place)
    while True:
        _restore(place, kept)
        of_run, of_data = _pairs_of_run(place.folder), _pairs_of_data(place.folder)
        one, other = place.random.choice(place.random.choice([of_run, of_data]))
        name, words = "half", ["--resume", "half"]
        if (one, other) in of_data and place.random.random() < 0.5:
            name, words = "new", [*MODEL, "--out", "new"]
        _swap(one, other)
        status, said = run(place.folder, "train.py", *words)
        wrong = _judge(place, name, status, said, one.name, other.name)
        if wrong is None and status:
            _swap(one, other)
            wrong = place.run_now(name, *words)
            wrong = wrong and f"put back again: {wrong}"
        paths = (str(path.relative_to(place.folder)) for path in (one, other))
        yield wrong and f"{' and '.join(paths)}, {' '.join(words[:2])}: {wrong}"


def _swap(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


_Pairs = list[tuple[Path, Path]]


def _pairs_of_run(folder: Path) -> _Pairs:
    """Return the pairs of which the first belongs to the half-done run."""
    half, runs = folder / "half", (folder / "seed", folder / "fables")
    newest, before = "checkpoints/step-000020", "checkpoints/step-000015"
    parts = [path.name for path in sorted((half / newest).iterdir())]
    names = ["config.json", "tokenizer.json", "metrics.jsonl", "checkpoints", newest]
    names += [f"{newest}/{part}" for part in parts]
    within = [(half / newest / part, half / before / part) for part in ("", *parts)]
    between = [(half / name, run / name) for name in names for run in runs]
    return [*within, *between, (folder / "stories.txt", folder / "fables.txt")]


def _pairs_of_data(folder: Path) -> _Pairs:
    """Return the pairs of which the first belongs to the data of the half-done run."""
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
