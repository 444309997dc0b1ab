"""Processes that are ended at random moments: what they did is gone on with, or done again."""

import os
import random
import shutil
import signal
import time
from collections.abc import Iterator

import gpt2.tokenizer.pretokens
from tests.campaigns.faults.processes import finish, helpers, run, start, stop, survivors
from tests.campaigns.faults.workplace import MODEL, Attempt, Workplace, data_sums

SAVING = [*MODEL[:-2], "--checkpoint-every", "1"]
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _interrupted(place: Workplace, options: list[str], number: int) -> Iterator[Attempt]:
    """Runs ended at random moments, resumed, ended again... until they are through."""
    name = f"ended-{number}"
    while True:
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
    """With a checkpoint now and then."""
    return _interrupted(place, MODEL, signal.SIGKILL)


def killed_while_saving(place: Workplace) -> Iterator[Attempt]:
    """With a checkpoint after every step, so that most kills fall into one."""
    return _interrupted(place, SAVING, signal.SIGKILL)


def signalled(place: Workplace) -> Iterator[Attempt]:
    """By the signals that ask for an end."""
    cases = [_interrupted(place, MODEL, number) for number in ENDS]
    while True:
        for case in cases:
            yield next(case)


def killed_in_tokenising(place: Workplace) -> Iterator[Attempt]:
    """Killed while a small text is prepared, three times; then done again to the end."""
    folder = place.folder / "tokenising"
    words = ("-m", "gpt2.data.prepare", "--data", "stories.txt", "--vocab-size", "300")
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        shutil.copy(place.folder / "stories.txt", folder)
        for _ in range(3):
            pid = start(folder, *words)
            time.sleep(place.random.uniform(0, 0.4))
            stop(pid)
            finish(pid)
        status, said = run(folder, *words)
        if status:
            yield f"could not be done again: {said.strip()[-200:]}"
            continue
        same = data_sums(folder / "data") == place.data
        yield None if same else "other tokens than undisturbed"


def killed_in_tokenizer_training(place: Workplace) -> Iterator[Attempt]:
    """Killed alone, with or without workers that count words for it; then done again."""
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
        name for name in undisturbed if "tokenizers/" in name and "tokenizer.json" in name
    )

    def use_workers() -> None:
        gpt2.tokenizer.pretokens._ALONE_CHARS = 1 << 16

    while True:
        shutil.rmtree(folder / "data")
        first = place.random.choice([use_workers, lambda: None])
        pid = start(folder, *words, first=first)
        time.sleep(place.random.uniform(0, seconds))
        workers = helpers(pid)
        os.kill(pid, signal.SIGKILL)
        finish(pid)
        left = survivors(workers, patience=60)
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
    """A text of many different words, on which a tokenizer is trained for a second or so."""
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    words = ["".join(chooser.choices(syllables, k=chooser.randint(2, 5))) for _ in range(90_000)]
    frequencies = [1 / (rank + 1) ** 0.5 for rank in range(len(words))]
    return "\n".join(
        " ".join(chooser.choices(words, frequencies, k=10_000)) + "\n" for _ in range(20)
    )
