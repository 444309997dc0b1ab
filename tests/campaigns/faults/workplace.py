"""A folder with a text and an undisturbed run on it, which every fault is compared with."""

import dataclasses
import math
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gpt2.common.files import sha256_file
from tests.campaigns.faults.processes import nothing, run
from tests.gpt2.stand_ins import curve

Attempt = str | None
"""None when nothing was lost, else a sentence that says what was."""

MODEL = [
    *("--data", "stories.txt", "--vocab-size", "300", "--n-layer", "1", "--n-head", "2"),
    *("--n-embd", "32", "--seq-len", "32", "--batch-size", "4", "--grad-accum", "2"),
    *("--dropout", "0.1", "--device", "cpu", "--dtype", "fp32", "--log-every", "1"),
    *("--sample-tokens", "4", "--steps", "40", "--eval-every", "20", "--checkpoint-every", "5"),
]
_LAST = "checkpoints/step-000040"


@dataclass(frozen=True)
class Workplace:
    """A folder in which processes are disturbed, and what an undisturbed run gave."""

    folder: Path  # holds stories.txt and its prepared data
    random: random.Random  # chooses the moments, the files and the damage
    seconds: float  # duration of the undisturbed run
    curve: list[tuple[float, ...]]  # its metrics, see `curve`
    weights: str  # SHA-256 of its last weights
    data: dict[str, str]  # SHA-256 of each file of the prepared data

    def copy(self, folder: Path, seed: str) -> "Workplace":
        """Return the same in another folder, with other random choices."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return dataclasses.replace(self, folder=folder, random=random.Random(seed))

    def trained(self, name: str) -> Attempt:
        """Compare a finished run with the undisturbed one, bit for bit."""
        if weights(self.folder / name) != self.weights:
            return "the weights differ from the undisturbed run's"
        if curve(self.folder / name) != self.curve:
            return "the losses differ from the undisturbed run's"
        return None

    def resume(self, name: str) -> Attempt:
        """Resume a run to its end, and compare it with the undisturbed one."""
        return self.run_now(name, "--resume", name)

    def run_now(self, name: str, *words: str, first: Callable[[], object] = nothing) -> Attempt:
        """Run train.py, which must succeed, and compare the run with the undisturbed one."""
        return succeeds(self.folder, "train.py", *words, first=first) or self.trained(name)


def succeeds(folder: Path, *words: str, first: Callable[[], object] = nothing) -> Attempt:
    """Run a command, which must succeed; see `processes.start`."""
    status, said = run(folder, *words, first=first)
    return f"{' '.join(words[:3])} did not run: {said.strip()[-300:]!r}" if status else None


def write_stories(folder: Path) -> None:
    """Write `folder`/stories.txt, of 400 short documents."""
    text = "<|endoftext|>\n".join(
        f"Story {i}. The {'cat' if i % 3 else 'dog'} saw {i} birds, and it ran home.\n" * 6
        for i in range(400)
    )
    (folder / "stories.txt").write_text(text, encoding="utf-8")


def undisturbed(folder: Path) -> Workplace:
    """Write the text, and train on it without a fault."""
    write_stories(folder)
    began = time.monotonic()
    wrong = succeeds(folder, "train.py", *MODEL, "--out", "undisturbed")
    assert wrong is None, wrong
    seconds, run_folder = time.monotonic() - began, folder / "undisturbed"
    losses, last = curve(run_folder), weights(run_folder)
    return Workplace(folder, random.Random(0), seconds, losses, last, data_sums(folder / "data"))


def losses_differ(folder: Path, other: Path) -> Attempt:
    """Compare the losses of two runs but for rounding, for sums that were cut differently."""
    ours, theirs = curve(folder), curve(other)
    close = len(ours) == len(theirs) and all(
        math.isclose(a, b, rel_tol=2e-5)
        for step, other_step in zip(ours, theirs, strict=True)
        for a, b in zip(step, other_step, strict=True)
    )
    return None if close else f"the losses {ours[-2:]} differ from {theirs[-2:]}"


def weights(folder: Path) -> str:
    """Return the SHA-256 of a finished run's weights."""
    return sha256_file(folder / _LAST / "model.safetensors")


def data_sums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of the prepared data and its tokenizer."""
    return {
        str(path.relative_to(folder)): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".bin", ".json") and path.name != "checksums.json"
    }


def refused(status: int, said: str, *names: str) -> Attempt:
    """Check that a command ended with status 2 and a message that holds one of the names."""
    _, _, message = said.rpartition("error: ")
    if status != 2 or "Traceback" in said or not message:
        return f"no clear message, but status {status}: {said[-300:]!r}"
    if not any(name in message for name in names):
        return f"none of {', '.join(names)} is named: {message[-300:]!r}"
    return None
