"""Checkpoints that are whole or absent: everything needed to go on bit for bit.

A checkpoint is a folder `step-000200` of safetensors and JSON files. It is written under a
temporary name; each file is flushed, the manifest with every file's SHA-256 comes last, and one
rename makes it visible. A folder under its final name with a manifest is therefore complete, and a
damaged one is noticed. Reading runs no code: no pickle anywhere.
"""

import json
import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gpt2.files import sha256_file, sync_folder, write_json

FORMAT = 1
MODEL, OPTIMIZER, RNG, STATE, MANIFEST = (
    "model.safetensors",
    "optimizer.safetensors",
    "rng.safetensors",
    "state.json",
    "manifest.json",
)


class DamagedCheckpoint(ValueError):
    """A checkpoint whose files are missing, cut off or altered; the message names the file."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory. `state` is plain JSON: step, data position, configuration, ..."""

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    rng: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write `folder`/step-<step> and return it. `folder` is the run's `checkpoints`."""
    final = folder / f"step-{checkpoint.state['step']:06d}"
    temporary = folder / f".{final.name}.tmp"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    tensor_files = {
        MODEL: checkpoint.model,
        OPTIMIZER: checkpoint.optimizer,
        RNG: checkpoint.rng,
    }
    for name, tensors in tensor_files.items():
        whole = {k: v.detach().contiguous().cpu() for k, v in tensors.items()}
        try:
            save_file(whole, temporary / name)
        except SafetensorError as error:  # how that library reports a full disk
            shutil.rmtree(temporary, ignore_errors=True)
            raise OSError(
                f"could not write {temporary / name}: {error}. The checkpoints before it are "
                "intact: make room on the disk, then go on with --resume"
            ) from error
        _flush(temporary / name)
    write_json(temporary / STATE, checkpoint.state)
    files = {
        name: {
            "bytes": (temporary / name).stat().st_size,
            "sha256": sha256_file(temporary / name),
        }
        for name in (*tensor_files, STATE)
    }
    write_json(temporary / MANIFEST, {"format": FORMAT, "files": files})
    sync_folder(temporary)
    old = folder / f".{final.name}.old"
    if final.exists():  # the same step again: a run that resumed before it, as this one was damaged
        os.rename(final, old)
    os.rename(temporary, final)
    sync_folder(folder)
    shutil.rmtree(old, ignore_errors=True)
    return final


def load_checkpoint(path: Path, *, weights_only: bool = False) -> Checkpoint:
    """Read and verify a checkpoint folder.

    Args:
        path: the folder step-<step>.
        weights_only: leave out (and do not verify) the optimizer and random state.

    Raises:
        DamagedCheckpoint: a file is missing, has another length or another SHA-256.
    """
    names = (MODEL, STATE) if weights_only else (MODEL, OPTIMIZER, RNG, STATE)
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            raise ValueError(
                f"{path} has checkpoint format {manifest['format']}, this version reads {FORMAT}"
            )
        expected = {name: manifest["files"][name] for name in names}
        sums = {name: (file["bytes"], file["sha256"]) for name, file in expected.items()}
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"{path / MANIFEST} cannot be read: {error!r}") from error
    for name, (size, digest) in sums.items():
        file = path / name
        if not file.is_file():
            raise DamagedCheckpoint(f"{file} is missing")
        if file.stat().st_size != size:
            raise DamagedCheckpoint(f"{file} has {file.stat().st_size} bytes instead of {size}")
        if sha256_file(file) != digest:
            raise DamagedCheckpoint(f"{file} fails its SHA-256 check")
    return Checkpoint(
        model=load_file(path / MODEL),
        optimizer={} if weights_only else load_file(path / OPTIMIZER),
        rng={} if weights_only else load_file(path / RNG),
        state=json.loads((path / STATE).read_text()),
    )


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    return sorted(folder.glob("step-*"), key=step_of)


def step_of(path: Path) -> int:
    number = path.name.removeprefix("step-")
    return int(number) if number.isdigit() else -1


def load_newest(folder: Path) -> tuple[Checkpoint, list[str]]:
    """The newest checkpoint that is whole, and a message for each damaged one passed over.

    Raises:
        ValueError: there is none.
    """
    damaged: list[str] = []
    for path in reversed(list_checkpoints(folder)):
        try:
            return load_checkpoint(path), damaged
        except DamagedCheckpoint as error:
            damaged.append(f"damaged checkpoint passed over: {error}")
    found = "; ".join(damaged) if damaged else "none was ever written"
    raise ValueError(f"no usable checkpoint in {folder}: {found}")


def validation_loss(path: Path) -> float | None:
    """The validation loss measured at a checkpoint's step; None when there is none to be read."""
    try:
        value = json.loads((path / STATE).read_text())["val_loss"]
    except (OSError, ValueError, KeyError):
        return None
    return None if value is None else float(value)


def best_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the lowest validation loss; None when no checkpoint has one."""
    losses = {p: validation_loss(p) for p in list_checkpoints(folder)}
    known = {p: loss for p, loss in losses.items() if loss is not None}
    return min(known, key=lambda p: known[p]) if known else None


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints and the best one."""
    best = best_checkpoint(folder)
    for path in list_checkpoints(folder)[: -max(1, keep)]:
        if path != best:
            # Out of sight in one rename, so that no reader meets half a checkpoint.
            doomed = path.with_name(f".{path.name}.old")
            os.rename(path, doomed)
            shutil.rmtree(doomed)


def remove_unfinished(folder: Path) -> None:
    """Delete what a killed process left behind. Only for the process that owns the run."""
    for path in (*folder.glob(".step-*.tmp"), *folder.glob(".step-*.old")):
        shutil.rmtree(path, ignore_errors=True)


def random_state() -> dict[str, Tensor]:
    """The state of every random number generator that training may draw from, as named tensors."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 (the global one)
    assert kind == "MT19937"
    _, words, gauss_next = random.getstate()
    state = {
        "torch.cpu": torch.get_rng_state(),
        "numpy.keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "numpy.position": torch.tensor([position, has_gauss]),
        "numpy.gauss": torch.tensor([gauss], dtype=torch.float64),
        "python.words": torch.tensor(words),
        "python.gauss": torch.tensor(
            [float("nan") if gauss_next is None else gauss_next], dtype=torch.float64
        ),
    }
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        state[f"torch.cuda.{i}"] = torch.cuda.get_rng_state(i)
    if torch.backends.mps.is_available():
        state["torch.mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: dict[str, Tensor]) -> None:
    """Put back what `random_state` gave."""
    torch.set_rng_state(state["torch.cpu"])
    position, has_gauss = state["numpy.position"].tolist()
    keys = state["numpy.keys"].numpy().astype(np.uint32)
    gauss = float(state["numpy.gauss"])
    np.random.set_state(("MT19937", keys, position, has_gauss, gauss))  # noqa: NPY002
    python_gauss = float(state["python.gauss"])
    random.setstate(
        (
            3,
            tuple(state["python.words"].tolist()),
            None if python_gauss != python_gauss else python_gauss,
        )
    )
    for name, value in state.items():
        if name.startswith("torch.cuda.") and torch.cuda.is_available():
            torch.cuda.set_rng_state(value, int(name.rpartition(".")[2]))
    if "torch.mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["torch.mps"])


def _flush(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
