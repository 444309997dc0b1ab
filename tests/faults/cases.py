"""What is done to a run, and what must come out: the undisturbed result, or the culprit's name.

Each case is a generator of attempts; an attempt yields None when nothing was lost, or a sentence on
what was.
"""

import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from gpt2.files import sha256_file
from gpt2.logs import read_metrics
from tests.faults.processes import finish, limit_file_size, run, start, stop

Attempt = str | None
MODEL = [
    *("--data", "stories.txt", "--vocab-size", "300", "--n-layer", "1", "--n-head", "2"),
    *("--n-embd", "32", "--seq-len", "32", "--batch-size", "4", "--grad-accum", "2"),
    *("--dropout", "0.1", "--device", "cpu", "--dtype", "fp32", "--log-every", "1"),
    *("--sample-tokens", "4", "--steps", "40", "--eval-every", "20", "--checkpoint-every", "5"),
]
SAVING = [*MODEL[:-2], "--checkpoint-every", "1"]
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Workplace:
    """A folder with a text, and the results of an undisturbed run on it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        documents = [
            f"Story {i}. The {'cat' if i % 3 else 'dog'} saw {i} birds, and it ran home.\n" * 6
            for i in range(400)
        ]
        text = "<|endoftext|>\n".join(documents)
        (folder / "stories.txt").write_text(text, encoding="utf-8")
        began = time.monotonic()
        status, said = run(folder, "train.py", *MODEL, "--out", "undisturbed")
        assert status == 0, said
        self.seconds = time.monotonic() - began
        self.curve = curve(folder / "undisturbed")
        self.weights = weights(folder / "undisturbed")
        self.data = data_sums(folder / "data")

    def moment(self) -> float:
        """A random time within a run, in seconds."""
        return self.random.uniform(0, self.seconds)

    def trained(self, run_folder: Path) -> Attempt:
        """None if the run gave what the undisturbed one did, bit for bit."""
        if curve(run_folder) != self.curve:
            return "the losses differ from the undisturbed run's"
        if weights(run_folder) != self.weights:
            return "the weights differ from the undisturbed run's"
        return None

    def resume(self, name: str) -> Attempt:
        status, said = run(self.folder, "train.py", "--resume", name)
        if status:
            return f"could not be resumed: {said.strip().splitlines()[-1:]}"
        return self.trained(self.folder / name)


def curve(folder: Path) -> list[tuple[float, ...]]:
    keys = ("step", "loss", "grad_norm", "lr", "val_loss")
    return [tuple(m.get(k, -1.0) for k in keys) for m in read_metrics(folder / "metrics.jsonl")]


def weights(folder: Path) -> str:
    return sha256_file(folder / "checkpoints/step-000040/model.safetensors")


def data_sums(folder: Path) -> dict[str, str]:
    """Every byte of the prepared data and its tokenizer."""
    return {
        str(path.relative_to(folder)): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".bin", ".json") and path.name != "checksums.json"
    }


def _interrupted(place: Workplace, options: list[str], number: int) -> Iterator[Attempt]:
    """Runs ended at random moments, resumed, ended again... until they are through."""
    while True:
        name = f"ended-{number}"
        shutil.rmtree(place.folder / name, ignore_errors=True)
        words = [*options, "--out", name]
        for _ in range(4):
            pid = start(place.folder, "train.py", *words)
            time.sleep(place.moment())
            stop(pid, number)
            finish(pid)
            begun = list((place.folder / name / "checkpoints").glob("step-*"))
            words = ["--resume", name] if begun else [*options, "--out", name]
            if not begun:  # nothing was there to lose
                shutil.rmtree(place.folder / name, ignore_errors=True)
            yield None
        if begun:
            yield place.resume(name)


def killed_in_training(place: Workplace) -> Iterator[Attempt]:
    return _interrupted(place, MODEL, signal.SIGKILL)


def killed_while_saving(place: Workplace) -> Iterator[Attempt]:
    return _interrupted(place, SAVING, signal.SIGKILL)


def signalled(place: Workplace) -> Iterator[Attempt]:
    cases = [_interrupted(place, MODEL, number) for number in ENDS]
    while True:
        for case in cases:
            yield next(case)


def killed_in_tokenising(place: Workplace) -> Iterator[Attempt]:
    """Killed while the tokenizer is trained and the text tokenised; then done again to the end."""
    while True:
        folder = place.folder / "tokenising"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        shutil.copy(place.folder / "stories.txt", folder)
        words = ("-m", "gpt2.data.prepare", "--data", "stories.txt", "--vocab-size", "300")
        for _ in range(3):
            pid = start(folder, *words)
            time.sleep(place.random.uniform(0, 0.4))
            stop(pid)
            finish(pid)
        status, said = run(folder, *words)
        if status:
            yield f"could not be done again: {said.strip()[-200:]}"
        same = data_sums(folder / "data") == place.data
        yield None if same else "other tokens than undisturbed"


def disk_full(place: Workplace) -> Iterator[Attempt]:
    """No file may grow beyond a random size: a clear end, and all is well with room again."""
    while True:
        shutil.rmtree(place.folder / "full", ignore_errors=True)
        size = place.random.choice([100, 1_000, 5_000, 20_000, 60_000, 100_000, 150_000])
        status, said = run(
            place.folder, "train.py", *MODEL, "--out", "full", first=limit_file_size(size)
        )
        if status == 0:
            yield place.trained(place.folder / "full")
        elif "Traceback" in said or "error:" not in said:
            yield f"no clear message with files limited to {size} bytes: {said[-300:]!r}"
        elif list((place.folder / "full/checkpoints").glob("step-*")):
            yield place.resume("full")
        else:
            yield None


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
    half = place.folder / "half"
    shutil.rmtree(half, ignore_errors=True)
    pid = start(place.folder, "train.py", *MODEL, "--out", "half")
    while not (half / "checkpoints/step-000020").exists():
        time.sleep(0.01)
    stop(pid)
    finish(pid)
    kept = place.folder / "kept"
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(half, kept)
    shutil.copytree(place.folder / "data", place.folder / "kept-data", dirs_exist_ok=True)
    while True:
        for name, damage in _DAMAGES.items():
            for folder, original in (
                (half, kept),
                (place.folder / "data", place.folder / "kept-data"),
            ):
                shutil.rmtree(folder)
                shutil.copytree(original, folder)
            files = [
                p
                for folder in (half, place.folder / "data")
                for p in folder.rglob("*")
                if p.is_file() and p.stat().st_size and p.suffix != ".png"
            ]
            path = place.random.choice(sorted(files))
            content = damage(path.read_bytes(), place.random)
            path.unlink()
            if content is not None:
                path.write_bytes(content)
            status, said = run(place.folder, "train.py", "--resume", "half")
            where = path.relative_to(place.folder)
            if status == 0:
                outcome = None if path.name in said else place.trained(half)
                yield outcome and f"{where} {name}: {outcome}"
            elif "Traceback" in said or "error:" not in said:
                yield f"{where} {name}: no clear message: {said[-300:]!r}"
            else:
                blamed = path.name in said or path.parent.name in said or "half" in said
                yield None if blamed else f"{where} {name}: not named: {said[-300:]!r}"


def second_run(place: Workplace) -> Iterator[Attempt]:
    """Another process starts in the folder of a run: it is refused, and the first is not hurt."""
    while True:
        shutil.rmtree(place.folder / "busy", ignore_errors=True)
        pid = start(place.folder, "train.py", *MODEL, "--out", "busy")
        while not (place.folder / "busy/checkpoints").exists():
            time.sleep(0.005)
        second = start(place.folder, "train.py", "--resume", "busy")
        refused, done = finish(second), finish(pid)
        if done:
            yield "the first run was hurt"
        elif refused == 2:
            yield place.trained(place.folder / "busy")
        else:  # the first was through before the second asked
            yield None if refused == 0 else f"the second run ended with {refused}"


def clock_jumps(place: Workplace) -> Iterator[Attempt]:
    """The wall clock jumps by years, back and forth, at every look at it."""

    def jump() -> None:
        time.time = lambda: random.uniform(0, 4e9)  # type: ignore[assignment]

    while True:
        shutil.rmtree(place.folder / "jumping", ignore_errors=True)
        status, said = run(place.folder, "train.py", *MODEL, "--out", "jumping", first=jump)
        yield said[-300:] if status else place.trained(place.folder / "jumping")


CASES: dict[str, tuple[Callable[[Workplace], Iterator[Attempt]], str, int, int]] = {
    "kill -9 at a random moment of training": (killed_in_training, "resumed", 6, 200),
    "kill -9 with a checkpoint every step": (killed_while_saving, "resumed", 6, 200),
    "SIGINT, SIGTERM, SIGHUP at a random moment": (signalled, "resumed", 6, 90),
    "kill -9 while tokenising": (killed_in_tokenising, "done again", 3, 60),
    "disk full at a random file size": (disk_full, "resumed with room again", 4, 60),
    "a file truncated, flipped, emptied, missing, overwritten": (
        damaged_files, "resumed, or the file named", 10, 200,
    ),
    "a second process in one run folder": (second_run, "refused; the first goes on", 1, 20),
    "the wall clock jumps by years": (clock_jumps, "went on", 1, 10),
}  # fmt: skip
"""Name of a case -> attempts, what must come out, how many attempts in the short and long form."""
