"""Processes that are ended at random moments, and then go on or begin again."""

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

import gpt2.tokenizer.pretokens
from gpt2.runs.checkpoint import DamagedCheckpoint, list_checkpoints, load_checkpoint
from tests.campaigns.faults import processes, workplace
from tests.campaigns.faults.processes import LOG, ROOT, finish, kill_survivors, start, stop
from tests.campaigns.faults.workplace import MODEL, Attempt, Workplace, data_sums, succeeds

SAVING = [*MODEL[:-2], "--checkpoint-every", "1"]
_PREPARE = ["-m", "gpt2.data.prepare", "--data"]
_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Without dropout, whose masks depend on the number of processes.
_DISTRIBUTED = [*SAVING, "--dropout", "0", "--optimizer", "adamw", "--steps", "20"]
_RANKS_END = 60.0  # seconds until all processes must have ended: torchrun gives them 30


def interrupted(place, options=MODEL, number=signal.SIGKILL):
    """End a training four times at random moments, going on in between; then let it finish."""
    name = f"ended-{number}"
    while True:
        shutil.rmtree(place.folder / name, ignore_errors=True)
        words = [*options, "--out", name]
        for _ in range(4):
            process = start(place.folder, "train.py", *words)
            time.sleep(place.random.uniform(0, place.seconds))
            stop(process, number)
            yield "it was refused" if finish(process) == 2 else None
            if list((place.folder / name / "checkpoints").glob("step-*")):
                words = ["--resume", name]
        yield place.run_now(name, *words)


def signalled(place: Workplace) -> Iterator[Attempt]:
    """Send the signals that ask for an end."""
    cases = [interrupted(place, number=number) for number in _ENDS]
    while True:
        for case in cases:
            yield next(case)


def killed_in_tokenising(place: Workplace) -> Iterator[Attempt]:
    """Kill the preparation of a small text three times; then let it finish."""
    folder = place.folder / "tokenising"
    words = [*_PREPARE, "stories.txt", "--vocab-size", "300"]
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        shutil.copy(place.folder / "stories.txt", folder)
        for _ in range(3):
            process = start(folder, *words)
            time.sleep(place.random.uniform(0, 0.4))
            stop(process)
            finish(process)
        yield _done_again(folder, words, place.data)


def _done_again(folder: Path, words: Sequence[str], wanted: dict[str, str]) -> Attempt:
    """Prepare the data to the end, and compare it with that of an undisturbed preparation."""
    wrong = succeeds(folder, *words)
    if wrong is None and data_sums(folder / "data") != wanted:
        wrong = "another tokenizer or other tokens than undisturbed"
    return wrong


def killed_in_counting(place: Workplace) -> Iterator[Attempt]:
    """Kill the training of a tokenizer, with or without workers that count words for it."""
    folder = place.folder / "words"
    folder.mkdir()
    (folder / "words.txt").write_text(_many_words(place.random), encoding="utf-8")
    words = [*_PREPARE, "words.txt", "--vocab-size", "1500"]
    began = time.monotonic()
    wrong = succeeds(folder, *words)
    assert wrong is None, wrong
    seconds = time.monotonic() - began
    undisturbed = data_sums(folder / "data")
    (folder_name,) = (path.name for path in (folder / "data/tokenizers").glob("words-*/"))
    trained = f"tokenizers/{folder_name}/tokenizer.json"

    def use_workers() -> None:
        gpt2.tokenizer.pretokens._ALONE_CHARS = 1 << 16

    while True:
        shutil.rmtree(folder / "data")
        process = start(folder, *words, first=place.random.choice([use_workers, processes.nothing]))
        time.sleep(place.random.uniform(0, seconds))
        workers = process.children(recursive=True)
        process.kill()
        finish(process)
        left = kill_survivors(workers, patience=60)
        found = data_sums(folder / "data").get(trained, undisturbed[trained])
        wrong = _done_again(folder, words, undisturbed)
        if left:
            wrong = f"{len(left)} of its workers outlived it"
        elif found != undisturbed[trained]:
            wrong = f"half of {trained} was there"
        elif litter := list((folder / "data").glob("*/**/.*.tmp")):
            wrong = wrong or f"left behind: {litter}"
        yield wrong


def _many_words(chooser: random.Random) -> str:
    """Return a text of many different words: a tokenizer's training on it takes a second or so."""
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    words = ["".join(chooser.choices(syllables, k=chooser.randint(2, 5))) for _ in range(90_000)]
    frequencies = [1 / (rank + 1) ** 0.5 for rank in range(len(words))]
    return "\n".join(
        " ".join(chooser.choices(words, frequencies, k=10_000)) + "\n" for _ in range(20)
    )


def killed_of_several(place: Workplace) -> Iterator[Attempt]:
    """Kill one of two processes: the other stops, and one process alone resumes the run."""
    wrong = succeeds(place.folder, "train.py", *_DISTRIBUTED, "--out", "alone")
    assert wrong is None, wrong
    while True:
        for mode in ("ddp", "fsdp"):
            folder = place.folder / mode
            shutil.rmtree(folder, ignore_errors=True)
            wrong = (
                _kill_one(place, mode)
                or _damaged_checkpoint(folder)
                or succeeds(place.folder, "train.py", "--resume", mode, "--parallel", "ddp")
                or workplace.losses_differ(folder, place.folder / "alone")
            )
            yield wrong and f"{mode}: {wrong}"


def _kill_one(place: Workplace, mode: str) -> Attempt:
    """Start two processes, and kill one of them around a random checkpoint."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [str(ROOT / "train.py"), *_DISTRIBUTED, "--out", mode, "--parallel", mode]
    until = place.folder / mode / f"checkpoints/step-{place.random.randint(1, 17):06d}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, *words]
    with open(place.folder / LOG, "wb") as log:
        agent = psutil.Popen(command, cwd=place.folder, env=environment, stdout=log, stderr=log)
    started: list[psutil.Process] = []
    try:
        processes.wait_for(agent, until.exists)
        time.sleep(place.random.uniform(0, 0.1))
        started = agent.children(recursive=True)
        ranks = [process for process in started if _trains(process)]
        if len(ranks) != 2:
            said = (place.folder / LOG).read_text(encoding="utf-8", errors="replace")
            return f"it did not get to {until.name}: {said[-300:]!r}"
        place.random.choice(ranks).kill()
        killed = time.monotonic()
        agent.wait(_RANKS_END)
        left = kill_survivors(started, patience=killed + _RANKS_END - time.monotonic())
        return f"{len(left)} processes did not end within {_RANKS_END:.0f} s" if left else None
    except psutil.TimeoutExpired:
        return f"torchrun did not end within {_RANKS_END:.0f} s"
    finally:
        kill_survivors([agent, *started], patience=0)
        agent.wait()


def _trains(process: psutil.Process) -> bool:
    """Return whether a process runs train.py; some others end before they can be asked."""
    try:
        return str(ROOT / "train.py") in process.cmdline()
    except psutil.NoSuchProcess:
        return False


def _damaged_checkpoint(folder: Path) -> Attempt:
    """Say which checkpoint is damaged, if one is."""
    try:
        for path in list_checkpoints(folder / "checkpoints"):
            load_checkpoint(path)
    except DamagedCheckpoint as error:
        return f"half a checkpoint was left: {error}"
    return None
