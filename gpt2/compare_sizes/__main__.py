"""Train model sizes on the same tokens, and compare what they cost and what they reach.

    python -m gpt2.compare_sizes --presets demo mini --tokens 20_000_000 --out runs/sizes
    python -m gpt2.compare_sizes --sizes 2x64 4x128 6x256 --tokens 200_000 --out runs/small-sizes

All sizes get the same text by the same tokenizer, in the same order, in steps of the same number of
tokens, on the same schedule; only the peak learning rate falls as 1 / width, about as the best one
does (Yang et al. 2021, arXiv:2203.03466), unless --lr says otherwise. Each is trained by what
train.py uses, in a process of its own, into a run folder of its own, DIR/<size>. The same command
goes on where an interrupted one ended: sizes that are done are left alone, and one that was begun
goes on bit for bit.

DIR/sizes.json has the figures, and sizes.md the same to read, with samples of the same prompts;
loss_tokens and loss_compute (.png, .svg) show the validation loss against tokens and FLOPs.
"""

import dataclasses
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import UseAppendAction

from gpt2.common.devices import choose_device
from gpt2.compare_sizes.plan import check_folder, check_runs, plan_runs, split_names
from gpt2.compare_sizes.plots import PLOTS, plot
from gpt2.compare_sizes.report import FILES, table, write
from gpt2.compare_sizes.results import beginnings, compare, encode_prompts, is_finished
from gpt2.compare_sizes.run import train
from gpt2.config import RunOptions, Settings, TrainConfig, decided_by_preset, settle
from gpt2.runs.checkpoint import list_checkpoints
from gpt2.training.run_training import Plan, hold, prepare_text


@dataclass(frozen=True, kw_only=True)
class Arguments(RunOptions):
    """Train model sizes on the same tokens, and compare what they cost and what they reach.

    Settings not given are those of the first preset named; with none named, of demo on a CPU and of
    mini on a GPU.
    """

    tokens: int
    """Training tokens of each size, cut to whole steps."""
    out: str
    """Folder of the comparison; with the same settings, one that was interrupted goes on."""
    presets: tuple[str, ...] = ()
    """Sizes by name: demo, mini, gpt2, gpt2-medium, gpt2-large, gpt2-xl."""
    sizes: tuple[str, ...] = ()
    """Sizes of your own: layers x width, as in 4x192, or layers x width x heads, as in 4x192x4.
    Heads that are not given are about 64 wide."""
    lr: tuple[float, ...] = ()
    """Peak learning rate: one for all sizes, or one for each, presets first. Not given: the
    preset's, times the preset's width over the size's."""
    prompt: UseAppendAction[tuple[str, ...]] = ()
    """Text that every size continues; may be given several times. Not given: beginnings of
    documents of the test split."""


def main(arguments: Arguments) -> None:
    out = Path(arguments.out)
    runs = _runs(arguments)
    check_folder(out, runs, {*FILES, *PLOTS})
    first = next(iter(runs.values()))
    prepared = prepare_text(Plan(out, first, resumed=False))
    check_runs(runs, prepared)
    texts = arguments.prompt or beginnings(prepared)
    prompts = encode_prompts(texts, prepared.tokenizer, context=first.seq_len)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with hold(out):
        for number, (name, config) in enumerate(runs.items(), 1):
            print(f"\n=== {name} ({number} of {len(runs)})", flush=True)
            _train(config)
        comparison = compare(
            {name: out / name for name in runs},
            prompts,
            data=prepared.name,
            device=arguments.device,
            sample_tokens=arguments.sample_tokens,
        )
        write(out, comparison)
        plot(out, comparison)
    print(f"\n{table(comparison)}\n\n{out / FILES[1]} has samples too")


def _runs(arguments: Arguments) -> dict[str, Settings]:
    presets, shapes = split_names(arguments.presets), split_names(arguments.sizes)
    base = TrainConfig(
        preset=presets[0] if presets else None,
        **{f.name: getattr(arguments, f.name) for f in dataclasses.fields(RunOptions)},
    )
    device, _ = choose_device(arguments.device)
    return plan_runs(
        settle(base, "demo" if device.type == "cpu" else "mini"),
        presets=presets,
        shapes=shapes,
        tokens=arguments.tokens,
        out=Path(arguments.out),
        lr=arguments.lr,
    )


def _train(settings: Settings) -> None:
    """Train a size, or the rest of it."""
    folder = Path(settings.out or "")
    if is_finished(folder):
        print(f"{folder} is done already")
    elif list_checkpoints(folder / "checkpoints"):
        train(
            TrainConfig(resume=settings.out, device=settings.device, cache_dir=settings.cache_dir)
        )
    else:
        train(settings)


if __name__ == "__main__":
    from gpt2.common.cli import run_tool

    run_tool(main, Arguments, decided=decided_by_preset())
