"""Going on with a run: what may be given anew, and whether its files belong together.

A run folder is config.json and checkpoints, each with the configuration that it was trained with.
Files of two runs that were mixed up would train on in silence, so they must agree.
"""

import dataclasses
import reprlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from gpt2.common.json_files import from_json
from gpt2.config import PORTABLE, GPTConfig, Settings, TrainConfig, settle
from gpt2.runs.checkpoint import list_checkpoints, load_state, step_of
from gpt2.runs.run import read_config

# What may be given anew with --resume: it changes neither the model nor the steps already taken.
RESUMABLE = {
    "resume", "device", "cache_dir", "eval_every", "eval_tokens", "log_every", "checkpoint_every",
    "log_attention", "keep", "track", "sample_every", "sample_tokens", "max_skipped", "parallel",
    "on_spike", "spike_sigma", "check_kernels", "auto_batch", "recompute", "compile", "dtype",
    "kernels", *PORTABLE,
}  # fmt: skip
# Of the schedule, which an extended run has anew.
_SCHEDULE = {"steps", "epochs", "lr", "min_lr", "warmup_steps", "extended_at"}
_MICRO_BATCH = {"batch_size", "grad_accum"}  # may change if their product stays


def resumed_settings(config: TrainConfig, given: Collection[str]) -> Settings:
    """The settings of the run to resume, with those of `config` that are `given` anew.

    A finished run is extended by more steps. Their learning rate stays what it was at the end; with
    a rate given it is that one, and falls by half a cosine, to a tenth or the lowest rate given.

    Raises:
        ValueError: no run folder, something given that cannot change, or a checkpoint that was
            trained with another configuration.
    """
    assert config.resume is not None
    folder = Path(config.resume)
    saved, model = read_config(folder)
    for path in list_checkpoints(folder / "checkpoints"):
        _check_own(path, saved, model, folder / "config.json")
    extension = _extension(config, saved, folder)
    extended = extension.keys() - {"epochs"}
    changes = {name: getattr(config, name) for name in given if name not in extended}
    for name, value in changes.items():
        own = getattr(saved, name)
        if name not in RESUMABLE | _MICRO_BATCH and value != own:
            raise ValueError(
                f"--{name.replace('_', '-')} {value} cannot be changed with --resume, which goes "
                f"on with {own}: leave it out, or start a new run"
            )
    settings = settle(dataclasses.replace(saved, **changes | extension))
    if settings.sequences_per_step != saved.sequences_per_step:
        raise ValueError(
            f"a step of {folder} takes {saved.batch_size} x {saved.grad_accum} sequences "
            "(--batch-size x --grad-accum), and with --resume their product stays the same: got "
            f"{settings.batch_size} x {settings.grad_accum}"
        )
    return settings


def _extension(given: TrainConfig, saved: Settings, folder: Path) -> dict[str, Any]:
    """What changes in the settings of a run that is to be extended; nothing if it is not."""
    if given.steps is None or given.steps == saved.steps:
        return {}
    checkpoints = list_checkpoints(folder / "checkpoints")
    if not (folder / "result.json").is_file() or not checkpoints:
        raise ValueError(
            f"--steps {given.steps} extends a run that is finished, and {folder} is not: go on "
            f"with it by --resume {folder} alone, and extend it then"
        )
    end = step_of(checkpoints[-1])
    if given.steps <= end:
        raise ValueError(
            f"--steps {given.steps}: {folder} has taken {end} steps; give more to extend it"
        )
    lr = saved.min_lr if given.lr is None else given.lr
    lowest = saved.min_lr if given.lr is None else given.lr / 10
    return {
        "steps": given.steps,
        "epochs": None,
        "lr": lr,
        "min_lr": lowest if given.min_lr is None else given.min_lr,
        "warmup_steps": given.warmup_steps or 0,
        "extended_at": end,
    }


def _check_own(path: Path, settings: Settings, model: GPTConfig, config_file: Path) -> None:
    """Raise ValueError if the checkpoint at `path` was trained with another configuration.

    Settings that only one of both has belong to another version of this program. A checkpoint that
    cannot be read is passed over: no run goes on with it.
    """
    try:
        state = load_state(path)
        known = settle(from_json(TrainConfig, state.train_config, others=True))
    except ValueError:
        return
    free = RESUMABLE | _MICRO_BATCH
    if settings.extended_at >= state.step:
        free |= _SCHEDULE
    pairs = [
        (name, getattr(known, name), getattr(settings, name))
        for name in (state.train_config.keys() & _names(Settings)) - free
    ]
    pairs += [
        (name, state.model_config[name], getattr(model, name))
        for name in state.model_config.keys() & _names(GPTConfig) - RESUMABLE
    ]
    if _MICRO_BATCH <= state.train_config.keys():
        sizes = known.sequences_per_step, settings.sequences_per_step
        pairs.append(("sequences in a step", *sizes))
    differing = [
        f"{name} {reprlib.repr(there)} there and {reprlib.repr(here)} here"
        for name, there, here in sorted(pairs, key=lambda pair: pair[0])
        if there != here
    ]
    if differing:
        raise ValueError(
            f"{path} was trained with another configuration than {config_file} holds "
            f"({', '.join(differing[:3])}): one of them was changed, or belongs to another run. "
            f"Put back what {config_file.parent} had, or move the checkpoint out of it to go on "
            "from another"
        )


def _names(config: type[GPTConfig] | type[TrainConfig]) -> set[str]:
    return {field.name for field in dataclasses.fields(config)}
