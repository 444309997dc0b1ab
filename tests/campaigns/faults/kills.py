"""Processes that are ended at random moments, and then go on or begin again."""

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

import gpt2.tokenizer.pretokens
from gpt2.runs.checkpoint import DamagedCheckpoint, list_checkpoints, load_checkpoint
from tests.campaigns.faults.processes import (
    LOG,
    ROOT,
    finish,
    kill_survivors,
    nothing,
    run,
    start,
    stop,
    wait_for,
)
from tests.campaigns.faults.workplace import MODEL, Attempt, Workplace, data_sums, losses_differ

_SAVING = [*MODEL[:-2], "--checkpoint-every", "1"]
_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Without dropout, whose masks depend on the number of processes.
_DISTRIBUTED = [
    *MODEL,
    *("--dropout", "0", "--optimizer", "adamw", "--steps", "20", "--checkpoint-every", "1"),
]
_RANKS_END = 60.0  # seconds until all processes must have ended: torchrun gives them 30


def _interrupted(place: Workplace, options: list[str], number: int) -> Iterator[Attempt]:
    """End a run four times at random moments, resuming it in between; then let it finish."""
    name = f"ended-{number}"
    while True:
        shutil.rmtree(place.folder / name, ignore_errors=True)
        words = [*options, "--out", name]
        for _ in range(4):
            process = start(place.folder, "train.py", *words)
            time.sleep(place.moment())
            stop(process, number)
            finish(process)
            begun = list((place.folder / name / "checkpoints").glob("step-*"))
            words = ["--resume", name] if begun else [*options, "--out", name]
            if not begun:  # nothing was there to lose
                shutil.rmtree(place.folder / name, ignore_errors=True)
            yield None
        if begun:
            yield place.resume(name)


def killed_in_training(place: Workplace) -> Iterator[Attempt]:
    """Kill a training that writes a checkpoint now and then."""
    return _interrupted(place, MODEL, signal.SIGKILL)


def killed_while_saving(place: Workplace) -> Iterator[Attempt]:
    """Kill a training that writes a checkpoint after every step, so most often within one."""
    return _interrupted(place, _SAVING, signal.SIGKILL)


def signalled(place: Workplace) -> Iterator[Attempt]:
    """Send the signals that ask for an end."""
    cases = [_interrupted(place, MODEL, number) for number in _ENDS]
    while True:
        for case in cases:
            yield next(case)


def killed_in_tokenising(place: Workplace) -> Iterator[Attempt]:
    """Kill the preparation of a small text three times; then let it finish."""
    folder = place.folder / "tokenising"
    words = ("-m", "gpt2.data.prepare", "--data", "stories.txt", "--vocab-size", "300")
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        shutil.copy(place.folder / "stories.txt", folder)
        for _ in range(3):
            process = start(folder, *words)
            time.sleep(place.random.uniform(0, 0.4))
            stop(process)
            finish(process)
        status, said = run(folder, *words)
        if status:
            yield f"could not be done again: {said.strip()[-200:]}"
        elif data_sums(folder / "data") != place.data:
            yield "other tokens than undisturbed"
        else:
            yield None


def killed_in_tokenizer_training(place: Workplace) -> Iterator[Attempt]:
    """Kill the training of a tokenizer, with or without workers that count words for it."""
    folder = place.folder / "words"
    folder.mkdir()
    (folder / "words.txt").write_text(_many_words(place.random), encoding="utf-8")
    words = ("-m", "gpt2.data.prepare", "--data", "words.txt", "--vocab-size", "1500")
    began = time.monotonic()
    status, said = run(folder, *words)
    assert status == 0, said
    seconds = time.monotonic() - began
    undisturbed = data_sums(folder / "data")
    trained = next(
        name
        for name in undisturbed
        if name.startswith("tokenizers/") and name.endswith("tokenizer.json")
    )

    def use_workers() -> None:
        gpt2.tokenizer.pretokens._ALONE_CHARS = 1 << 16

    while True:
        shutil.rmtree(folder / "data")
        process = start(folder, *words, first=place.random.choice([use_workers, nothing]))
        time.sleep(place.random.uniform(0, seconds))
        workers = process.children(recursive=True)
        process.kill()
        finish(process)
        left = kill_survivors(workers, patience=60)
        found = data_sums(folder / "data")
        status, said = run(folder, *words)
        if left:
            yield f"{len(left)} of its workers outlived it"
        elif found.get(trained, undisturbed[trained]) != undisturbed[trained]:
            yield f"half of {trained} was there"
        elif status:
            yield f"could not be done again: {said.strip()[-200:]}"
        elif data_sums(folder / "data") != undisturbed:
            yield "another tokenizer or other tokens than undisturbed"
        elif litter := list((folder / "data").glob("*/**/.*.tmp")):
            yield f"left behind: {litter}"
        else:
            yield None


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
    status, said = run(place.folder, "train.py", *_DISTRIBUTED, "--out", "alone")
    assert status == 0, said
    while True:
        for mode in ("ddp", "fsdp"):
            shutil.rmtree(place.folder / mode, ignore_errors=True)
            wrong = _kill_one(place, mode) or _damaged_checkpoint(place.folder / mode)
            if wrong is None:
                status, said = run(place.folder, "train.py", "--resume", mode, "--parallel", "ddp")
                wrong = f"could not be resumed: {said[-300:]!r}" if status else None
            wrong = wrong or losses_differ(place.folder / mode, place.folder / "alone")
            yield wrong and f"{mode}: {wrong}"


def _kill_one(place: Workplace, mode: str) -> Attempt:
    """Start two processes, and kill one of them around a random checkpoint."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [str(ROOT / "train.py"), *_DISTRIBUTED, "--out", mode, "--parallel", mode]
    until = place.folder / mode / f"checkpoints/step-{place.random.randint(1, 17):06d}"
    with open(place.folder / LOG, "wb") as log:
        agent = psutil.Popen(
            [sys.executable, *launcher, *words],
            cwd=place.folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
        )
    started: list[psutil.Process] = []
    try:
        wait_for(agent, until.exists)
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
