"""Checkpoints that are whole or absent: everything needed to go on bit for bit.

A checkpoint is a folder `step-000200` of safetensors and JSON files. It is written under a
temporary name; each file is flushed, the manifest with every file's SHA-256 comes last, and one
rename makes it visible. A folder under its final name with a manifest is therefore complete, and a
damaged one is noticed. Reading runs no code: no pickle anywhere.
"""

import dataclasses
import os
import reprlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gpt2.common.files import remove_leftovers, sha256_file, sync_folder, write_json
from gpt2.common.json_files import from_json, read_json_object
from gpt2.runs.metrics import Fingerprint
from gpt2.runs.random_state import check_random_states

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
class LossSum:
    """The losses since the last line of metrics: their sum, and how many they are."""

    loss: float = 0.0
    steps: int = 0


@dataclass(frozen=True, kw_only=True)
class TrainerState:
    """What a trainer needs to go on bit for bit, besides tensors: the content of state.json.

    Attributes:
        step: optimizer steps taken.
        tokenizer_hash: of the tokenizer, so that weights never meet another vocabulary.
        data_hash: of the text, so that a run never goes on with another.
        data: the position in the text, see `gpt2.data.batches.Batches.state_dict`.
        metrics: what metrics.jsonl was.
        val_loss: at this step, in nats per token; None where it was not measured or not finite.
        best_val_loss: the lowest so far.
        skipped: steps skipped in all.
        skipped_in_a_row: the last steps, if they were skipped.
        rollbacks: how often the run went back to a checkpoint.
        recent_losses: those that spikes are measured against.
        interval: the losses that the next line of metrics will average.
        scaler: state of the loss scaling of fp16; None without it.
        train_config: `gpt2.config.Settings` as JSON.
        model_config: `gpt2.config.GPTConfig` as JSON.
        torch: PyTorch's version.
    """

    step: int
    tokenizer_hash: str
    data_hash: str = ""
    data: dict[str, int] = field(default_factory=dict)
    metrics: Fingerprint = field(default_factory=Fingerprint)
    val_loss: float | None = None
    best_val_loss: float | None = None
    skipped: int = 0
    skipped_in_a_row: int = 0
    rollbacks: int = 0
    recent_losses: list[float] = field(default_factory=list)
    interval: LossSum = field(default_factory=LossSum)
    scaler: dict[str, Any] | None = None
    train_config: dict[str, Any] = field(default_factory=dict)
    model_config: dict[str, Any] = field(default_factory=dict)
    torch: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory."""

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    rng: dict[str, Tensor]
    state: TrainerState


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write `folder`/step-<step> and return it. `folder` is the run's `checkpoints`."""
    final = folder / f"step-{checkpoint.state.step:06d}"
    temporary = folder / f".{final.name}.tmp"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    tensor_files = {MODEL: checkpoint.model, OPTIMIZER: checkpoint.optimizer, RNG: checkpoint.rng}
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
    write_json(temporary / STATE, dataclasses.asdict(checkpoint.state))
    files = {
        name: {"bytes": (temporary / name).stat().st_size, "sha256": sha256_file(temporary / name)}
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
        DamagedCheckpoint: a file is missing, has another length or another SHA-256, or does not
            hold what belongs in it.
        ValueError: a format that this version does not know.
    """
    _verify(path, (MODEL, STATE) if weights_only else (MODEL, OPTIMIZER, RNG, STATE))
    return Checkpoint(
        model=_read_tensors(path / MODEL),
        optimizer={} if weights_only else _read_tensors(path / OPTIMIZER),
        rng={} if weights_only else _read_random_states(path / RNG),
        state=_read_state(path / STATE),
    )


def load_state(path: Path) -> TrainerState:
    """Read and verify only the state of a checkpoint folder; errors as of `load_checkpoint`."""
    _verify(path, (STATE,))
    return _read_state(path / STATE)


def _verify(path: Path, names: tuple[str, ...]) -> None:
    manifest = _read_object(path / MANIFEST)
    if manifest.get("format", FORMAT) != FORMAT:
        form = reprlib.repr(manifest["format"])
        raise ValueError(f"{path} has checkpoint format {form}, this version reads {FORMAT}")
    try:
        expected = {name: manifest["files"][name] for name in names}
        sums = {name: (file["bytes"], file["sha256"]) for name, file in expected.items()}
    except (KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"{path / MANIFEST} cannot be read: {error!r}") from error
    for name, (size, digest) in sums.items():
        file = path / name
        if not file.is_file():
            raise DamagedCheckpoint(f"{file} is missing")
        if file.stat().st_size != size:
            size = reprlib.repr(size)
            raise DamagedCheckpoint(f"{file} has {file.stat().st_size} bytes instead of {size}")
        if sha256_file(file) != digest:
            raise DamagedCheckpoint(f"{file} fails its SHA-256 check")


def _read_state(path: Path) -> TrainerState:
    content = _read_object(path)
    try:
        return from_json(TrainerState, content, others=True, finite=False)
    except ValueError as error:
        raise DamagedCheckpoint(f"{path} is no state of a training run: {error}") from error


def _read_object(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path)
    except ValueError as error:
        raise DamagedCheckpoint(str(error)) from error


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:  # its SHA-256 is right: it was written so
        raise DamagedCheckpoint(f"{path} is not a safetensors file: {error}") from error


def _read_random_states(path: Path) -> dict[str, Tensor]:
    tensors = _read_tensors(path)
    try:
        check_random_states(tensors)
    except ValueError as error:
        raise DamagedCheckpoint(f"{path} holds no random state: {error}") from error
    return tensors


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Put a checkpoint's weights into a model.

    Raises:
        ValueError: they are not those of such a model; begins with `where`.
    """
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reasons = [line.strip() for line in str(error).splitlines()[1:3]]
        raise ValueError(f"{where} does not fit the model: {' '.join(reasons):.500}") from error


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    return sorted(folder.glob("step-*"), key=step_of)


def step_of(path: Path) -> int:
    number = path.name.removeprefix("step-")
    return int(number) if number.isascii() and number.isdigit() else -1


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
    found = "; ".join(damaged) or f"none was written: train anew, with --out {folder.parent}"
    raise ValueError(f"no usable checkpoint in {folder}: {found}")


def validation_loss(path: Path) -> float | None:
    """The validation loss measured at a checkpoint's step; None where there is none to be read."""
    try:
        return load_state(path).val_loss
    except ValueError:
        return None


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
            # Left-overs, as of files that others hold open on NFS, are no reason to stop training.
            shutil.rmtree(doomed, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Delete what a killed process left in a run folder. Only for the process that owns it."""
    remove_leftovers(folder)
    checkpoints = folder / "checkpoints"
    for path in (*checkpoints.glob(".step-*.tmp"), *checkpoints.glob(".step-*.old")):
        shutil.rmtree(path, ignore_errors=True)


def _flush(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
