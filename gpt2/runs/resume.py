"""Going on with a run: what may be given anew, and whether its files belong together.

A run folder is config.json and checkpoints, each with the configuration that it was trained with.
Files of two runs that were mixed up would train on in silence, so they must agree.
"""

import dataclasses
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt2.common.files import sha256_file
from gpt2.common.json_files import is_number, read_json_object
from gpt2.config import PORTABLE, TrainConfig
from gpt2.runs.checkpoint import MANIFEST, STATE, list_checkpoints
from gpt2.runs.run import read_config

# What may be given anew with --resume: it changes neither the model nor the steps already taken.
RESUMABLE = {
    "resume", "device", "cache_dir", "eval_every", "eval_tokens", "log_every", "checkpoint_every",
    "keep", "tensorboard", "sample_tokens", "max_skipped", "parallel",
    "on_spike", "spike_sigma", "check_kernels", "auto_batch", "recompute",
}  # fmt: skip
_CHOSEN_HERE = {*PORTABLE, "recompute"}  # of a model: settled anew on each machine
_MICRO_BATCH = {"batch_size", "grad_accum"}  # --auto-batch changes them, and keeps their product


def resumed_config(given: TrainConfig) -> TrainConfig:
    """The resumed run's configuration, with what may be given anew.

    Raises:
        ValueError: no run folder, something given that cannot change, or a checkpoint that was
            trained with another configuration.
    """
    assert given.resume is not None
    folder = Path(given.resume)
    saved, model = read_config(folder)
    configs = {"train": dataclasses.asdict(saved), "model": dataclasses.asdict(model)}
    for path in list_checkpoints(folder / "checkpoints"):
        _check_own(path, configs, folder / "config.json")
    default = TrainConfig()
    changes = {}
    for field in dataclasses.fields(TrainConfig):
        value = getattr(given, field.name)
        if value == getattr(default, field.name):
            continue
        if field.name not in RESUMABLE and value != getattr(saved, field.name):
            option = "--" + field.name.replace("_", "-")
            raise ValueError(
                f"{option} {value} cannot be changed with --resume, which goes on with "
                f"{getattr(saved, field.name)}: leave it out, or start a new run"
            )
        changes[field.name] = value
    return dataclasses.replace(saved, **changes)


def _check_own(path: Path, configs: Mapping[str, Mapping[str, Any]], config_file: Path) -> None:
    """Raise ValueError if the checkpoint at `path` was trained with another configuration.

    Settings that only one of both has are of another version of this program. A checkpoint that
    cannot be read is none to go on with, whatever it says.
    """
    state = _read_state(path)
    if state is None:
        return
    differing = [
        f"{name} {reprlib.repr(old[name])} there and {reprlib.repr(now[name])} here"
        for old, now, free in (
            (state["train_config"], configs["train"], RESUMABLE | _MICRO_BATCH),
            (state["model_config"], configs["model"], _CHOSEN_HERE),
        )
        for name in sorted((old.keys() & now.keys()) - free)
        if old[name] != now[name]
    ]
    sizes = [_sequences(config) for config in (state["train_config"], configs["train"])]
    if sizes[0] != sizes[1]:
        differing.append(f"steps of {sizes[0]} sequences there and of {sizes[1]} here")
    if differing:
        raise ValueError(
            f"{path} was trained with another configuration than {config_file} holds "
            f"({', '.join(differing[:3])}): one of them was changed, or belongs to another run. "
            f"Put back what {config_file.parent} had, or move the checkpoint out of it to go on "
            "from another"
        )


def _read_state(path: Path) -> dict[str, Any] | None:
    """What a checkpoint knows of its run; None when that cannot be read or is damaged."""
    try:
        expected = read_json_object(path / MANIFEST)["files"][STATE]
        state = read_json_object(path / STATE)
        if sha256_file(path / STATE) != expected["sha256"]:
            return None
        complete = all(isinstance(state[name], dict) for name in ("train_config", "model_config"))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return state if complete else None


def _sequences(config: Mapping[str, Any]) -> int | None:
    """In a step."""
    size, count = config.get("batch_size"), config.get("grad_accum")
    return round(size * count) if is_number(size) and is_number(count) else None
