"""What a comparison of sizes will train: one `Settings` for each, and whether it can be done."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt2.common.devices import choose_device
from gpt2.config import PRESETS, Settings, model_config
from gpt2.data.batches import Batches
from gpt2.data.prepare import Prepared
from gpt2.runs.run import read_config
from gpt2.tokenizer import Tokenizer
from gpt2.training.machine import choose_machine

_SHAPE = re.compile(r"(\d+)x(\d+)(?:x(\d+))?")
_HEAD_WIDTH = 64
# What a size may be resumed with though it was begun with another: it changes no result.
_FREE = {"out", "cache_dir", "device", "parallel", "sample_tokens"}


def split_names(words: Iterable[str]) -> list[str]:
    """Names of sizes, which may also be joined by commas."""
    return [name for word in words for name in word.lower().split(",") if name]


def plan_runs(
    base: Settings,
    *,
    presets: Sequence[str],
    shapes: Sequence[str],
    tokens: int,
    out: Path,
    lr: Sequence[float] = (),
) -> dict[str, Settings]:
    """The run of each size, by its name, presets first; all but size and rate are those of `base`.

    Args:
        base: with every setting of its preset filled in.
        presets: names out of `PRESETS`.
        shapes: layers x width, "4x192", or layers x width x heads, "4x192x4".
        tokens: to train on, cut to whole steps.
        out: the folder of all run folders.
        lr: one peak learning rate for all or one for each; none is that of `base`, which belongs
            to the width of its preset, times that width over the size's.

    Raises:
        ValueError: an unknown or repeated size, fewer than two, rates that do not match the sizes,
            or too few tokens for one step.
    """
    names = [*presets, *shapes]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(
            f"a comparison needs at least two sizes, all different, got {' '.join(names) or 'none'}"
            ": name them, as in --presets demo mini or --sizes 2x128 4x192"
        )
    if len(lr) not in (0, 1, len(names)):
        raise ValueError(
            f"--lr gives {len(lr)} rates for {len(names)} sizes: give one for all of them, or one "
            "for each"
        )
    lr_times_width = base.lr * PRESETS[base.preset].n_embd
    base = dataclasses.replace(base, **_schedule(base, tokens))
    runs = {}
    for i, name in enumerate(names):
        changes = _preset(name) if name in presets else _shape(name)
        run = dataclasses.replace(base, **changes, out=str(out / name))
        width = run.n_embd
        peak = lr[i % len(lr)] if lr else lr_times_width / width
        runs[name] = dataclasses.replace(run, lr=peak, min_lr=peak / 10)
    return runs


def _preset(name: str) -> dict[str, Any]:
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
    shape = PRESETS[name]
    return {"preset": name} | {n: getattr(shape, n) for n in ("n_layer", "n_head", "n_embd")}


def _shape(name: str) -> dict[str, Any]:
    found = _SHAPE.fullmatch(name)
    if found is None:
        raise ValueError(
            f"--sizes {name}: write layers x width, as in 4x192, or layers x width x heads, as in "
            "4x192x4; named sizes go with --presets"
        )
    layers, width = int(found[1]), int(found[2])
    divisors = [n for n in range(1, width + 1) if width % n == 0] or [1]
    heads = int(found[3] or min(divisors, key=lambda n: abs(width / n - _HEAD_WIDTH)))
    return {"n_layer": layers, "n_embd": width, "n_head": heads}


def _schedule(base: Settings, tokens: int) -> dict[str, Any]:
    """The length of the runs, and when they are measured: 10 to 20 times, if long enough."""
    per_step = base.seq_len * base.batch_size * base.grad_accum
    steps = tokens // per_step
    if steps < 1:
        raise ValueError(
            f"--tokens {tokens:,} is less than one step of {per_step:,} tokens "
            f"({base.grad_accum} x {base.batch_size} x {base.seq_len}): give more, or lower "
            "--grad-accum, --batch-size or --seq-len"
        )
    log_every = max(1, steps // 100)
    return {
        "steps": steps,
        "warmup_steps": min(base.warmup_steps, max(1, steps // 10)),
        "log_every": log_every,
        "eval_every": 10 * log_every,
        "checkpoint_every": 10 * log_every,
        "eval_tokens": min(base.eval_tokens, max(per_step, tokens // 20)),
        "keep": 1,
    }


def check_runs(runs: Mapping[str, Settings], prepared: Prepared) -> None:
    """Raise ValueError, before anything is trained, for what this machine or text cannot do."""
    tokenizer = prepared.tokenizer
    for name, config in runs.items():
        try:
            shape = model_config(config, tokenizer.vocab_size, tokenizer.eot_id)
            choose_machine(choose_device(config.device)[0], config, shape)
        except ValueError as error:
            raise ValueError(f"size {name}: {error}") from error
        begun = Path(config.out or "") / "tokenizer.json"
        if begun.is_file() and Tokenizer.load(begun).hash != tokenizer.hash:
            raise ValueError(
                f"{begun} is not the tokenizer of this text, which must have changed since the "
                "comparison began: choose another --out"
            )
    Batches(
        prepared.splits["train"],
        seq_len=config.seq_len,
        batch_size=config.batch_size,
        seed=config.seed,
    )


def check_folder(out: Path, runs: Mapping[str, Settings], files: Iterable[str]) -> None:
    """Refuse a folder that holds something else than this comparison: its runs and its files.

    Raises:
        ValueError: it holds other things, or a run of one of the sizes with other settings.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise ValueError(f"--out {out} is a file: name a folder")
    for path in out.iterdir():
        own = path.name in files or path.name.startswith(".")
        if not own and not (path / "config.json").is_file() and not _is_begun(path, runs):
            raise ValueError(
                f"--out {out} holds something else than a comparison of sizes ({path.name}): "
                "choose another"
            )
    for name, config in runs.items():
        if (out / name / "config.json").is_file():
            _check_settings(out / name, config)


def _is_begun(path: Path, runs: Mapping[str, Settings]) -> bool:
    """Whether a run was about to start here."""
    return path.name in runs and {p.name for p in path.iterdir()} <= {".lock", "tokenizer.json"}


def _check_settings(folder: Path, config: Settings) -> None:
    saved, wanted = dataclasses.asdict(read_config(folder)[0]), dataclasses.asdict(config)
    changed = [
        f"{name} {saved[name]} and not {value}"
        for name, value in wanted.items()
        if name not in _FREE and saved[name] != value
    ]
    if changed:
        raise ValueError(
            f"{folder} was trained with {', '.join(changed)}: give the same settings to go on with "
            "it, or choose another --out"
        )
