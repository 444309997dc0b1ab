"""One training, from what was asked to the scored result: what train.py and compare_sizes run.

    plan       settle the settings, and the run folder
    prepare    tokenizer and tokens
    build      model, machine, trainer
    fit        the loop
    report     test perplexity and samples, by the best weights

Everything that can be refused is refused before the run folder is made.
"""

import re
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from gpt2.common.devices import choose_device, device_memory
from gpt2.common.distributed import broadcast, destroy_process_group, process_group, say, world
from gpt2.common.files import lock
from gpt2.common.ranges import check_numbers
from gpt2.config import (
    INTERPRETED,
    GPTConfig,
    Settings,
    TrainConfig,
    changed_options,
    model_config,
    settle,
)
from gpt2.data.prepare import Prepared, prepare
from gpt2.model import GPT, count_parameters
from gpt2.runs.checkpoint import list_checkpoints, load_newest, remove_unfinished
from gpt2.runs.resume import resumed_settings
from gpt2.runs.run import read_config, write_config
from gpt2.runs.trackers import check_tracker
from gpt2.training.machine import Machine, choose_machine, interpreted
from gpt2.training.out_of_memory import of_memory, oom_advice, step_memory, what_to_lower
from gpt2.training.results import beginning, report, samples
from gpt2.training.trainer import Trainer
from gpt2.weights.pretrained import Pretrained, begin_from, find_pretrained

_OOM_HINT = (
    "choose a smaller --preset, or a lower --batch-size or --seq-len; a run that has begun goes on "
    "with --resume"
)


def run_training(config: TrainConfig, given: Collection[str] | None = None) -> int | None:
    """Train as `config` asks, in this process or, under torchrun, with the others.

    Args:
        config: what is asked.
        given: the settings that were named; None takes those that differ from their defaults.

    Returns:
        None when the run is done and scored; the number of the signal that ended it early, after a
        checkpoint.

    Raises:
        ValueError: the configuration, text or machine does not allow it; says what would.
        OSError: a file cannot be read or written.
        Diverged, OutOfMemory: as `Trainer.fit`.
    """
    start = time.perf_counter()
    with process_group() as here, oom_advice(lambda: _OOM_HINT):
        plan = broadcast(lambda: make_plan(config, given))
        prepared = prepare_text(plan)
        trainer = build(plan, prepared)
        with hold(plan.folder):
            begin(plan, prepared, trainer)
            _say_pace(trainer)
            first = trainer.step
            signal_number = trainer.fit()
            destroy_process_group()
            if signal_number is not None:
                say(f"saved step {trainer.step:,} of {trainer.steps:,}; to go on:")
                say(f"python train.py --resume {plan.folder}")
                return signal_number
            if here.main:
                report(trainer, prepared, trained=trainer.step > first)
    say(f"done in {time.perf_counter() - start:.0f} s; everything is in {plan.folder}")
    return None


@dataclass(frozen=True)
class Plan:
    """A run about to start or to go on.

    Attributes:
        folder: the run folder.
        settings: of the run.
        resumed: whether it goes on.
        start: the weights that it begins from; None where they are random, or those of the run.
    """

    folder: Path
    settings: Settings
    resumed: bool
    start: Pretrained | None = None


def make_plan(config: TrainConfig, given: Collection[str] | None = None) -> Plan:
    """Settle what `config` leaves open: by the preset, the weights to begin from, or the run.

    The arguments are those of `run_training`.

    Raises:
        ValueError: an unknown preset, a number out of range, an --out that holds a run, a --resume
            that holds none or that is given together with settings which it cannot change, an
            --init-from that cannot be loaded or that contradicts other settings, a --track whose
            library is missing.
    """
    check_numbers(config)
    given = changed_options(config) if given is None else given
    if config.resume is not None:
        settings = resumed_settings(config, given)
        check_numbers(settings)
        _check(settings)
        return Plan(Path(config.resume), settings, resumed=True)
    device, _ = choose_device(config.device)
    start = None
    if config.init_from is not None:
        start = find_pretrained(config.init_from)
        config = begin_from(start, config, given)
    default = "demo" if device.type == "cpu" else "mini"
    settings = settle(config, default, interpreted=interpreted(device, config))
    _check(settings)
    model_config(
        settings, settings.vocab_size, 0
    )  # what cannot be built is refused before the text
    return Plan(_new_folder(settings), settings, resumed=False, start=start)


def _check(settings: Settings) -> None:
    check_tracker(settings.track)
    if settings.min_lr > settings.lr:
        raise ValueError(f"--min-lr {settings.min_lr:g} is above --lr {settings.lr:g}: lower it")


def _new_folder(settings: Settings) -> Path:
    if settings.out is not None:
        _left_no_checkpoint(Path(settings.out))
        return Path(settings.out)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(settings.data).name).strip("-.") or "run"
    model = Path(settings.init_from).resolve().name if settings.init_from else settings.preset
    folder = base = Path("runs") / f"{name}-{model}"
    number = 1
    while folder.exists():
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder


def _left_no_checkpoint(folder: Path) -> bool:
    """Tell whether `folder` is that of a run without a checkpoint; ValueError if it holds more."""
    if not (folder / "config.json").exists():
        return False
    with suppress(ValueError):  # of a config.json that is none of ours, such as an exported model's
        read_config(folder)
        if not (list_checkpoints(folder / "checkpoints") or (folder / "result.json").exists()):
            return True
    raise ValueError(
        f"{folder} already holds a run or another model, which is never overwritten: go on with a "
        f"run by --resume {folder}, or choose another --out"
    )


def prepare_text(plan: Plan) -> Prepared:
    """Prepare the tokenizer and the tokens of a run; a resumed run keeps its tokenizer."""
    settings = plan.settings
    prepared = prepare(
        settings.data,
        tokenizer=str(plan.folder / "tokenizer.json") if plan.resumed else settings.tokenizer,
        vocab_size=settings.vocab_size,
        cache_dir=Path(settings.cache_dir),
        token_type=settings.token_type,
    )
    if "train" not in prepared.splits:
        raise ValueError(
            f"{settings.data} has no text to train on, only {', '.join(prepared.splits)}"
        )
    for line in prepared.notes:
        say(line)
    return prepared


def build(plan: Plan, prepared: Prepared) -> Trainer:
    """Build the trainer of a run and say what it will do; nothing is written yet.

    Raises:
        ValueError: settings that this machine cannot run, or too little text.
    """
    settings = plan.settings
    device, note = choose_device(settings.device)
    tokenizer = prepared.tokenizer
    shape = model_config(settings, tokenizer.vocab_size, tokenizer.eot_id)
    before = read_config(plan.folder)[1].attn if plan.resumed else None
    machine, shape = choose_machine(device, settings, shape, before=before)
    for line in (*([note] if note else []), *machine.notes):
        say(line)
    torch.manual_seed(settings.seed)
    alone = world().size == 1
    with oom_advice(lambda: what_to_lower(settings, shape, machine, alone=alone)):
        if plan.start is None:
            model = GPT(shape).to(device)
        else:
            say(plan.start.note)
            if (rows := plan.start.config.vocab_size) > shape.vocab_size:
                say(
                    f"their vocabulary is padded: {shape.vocab_size:,} tokens in {rows:,} rows; "
                    "the rows without a token are left out"
                )
            model = plan.start.build(shape).to(device)
    if world().rank:  # equal weights in all processes, but other dropout masks
        torch.manual_seed(settings.seed + world().rank)

    def sample(model: GPT) -> dict[str, str]:
        text = beginning(prepared)
        texts = samples(model, tokenizer, text, settings)
        return {name: text + continuation for name, continuation in texts.items()}

    trainer = Trainer(
        settings,
        model,
        machine,
        prepared.splits["train"],
        prepared.splits["valid"],
        folder=plan.folder,
        tokenizer_hash=prepared.tokenizer.hash,
        bos_id=prepared.tokenizer.eot_id,
        data_hash=prepared.fingerprint,
        sample=sample if settings.sample_every else None,
    )
    _say_size(trainer, shape, machine)
    return trainer


def _say_size(trainer: Trainer, shape: GPTConfig, machine: Machine) -> None:
    settings = trainer.settings
    say(
        f"model: {settings.init_from or trainer.folder.name}, "
        f"{count_parameters(shape):,} parameters "
        f"({shape.n_layer} layers, {shape.n_head} heads, {shape.n_embd} wide, "
        f"vocabulary {shape.vocab_size:,}, context "
        f"{shape.block_size}; {shape.norm_position}-{shape.norm}, {shape.mlp}, {shape.positions} "
        f"positions{' within documents' if shape.restart_positions else ''}, "
        f"{'tied' if shape.tie else 'untied'} head, attention to {shape.attend})"
    )
    memory = step_memory(settings, shape, machine)
    say(f"memory, estimated: {memory}{of_memory(machine)}")
    has = device_memory(machine.device)
    if has and memory.peak > 0.95 * has:
        say(
            "warning: that is likely too much. Lower --batch-size (raise --grad-accum to keep the "
            "step the same), use --recompute block, lower --seq-len, or choose a smaller --preset"
        )
    epochs = trainer.steps * trainer.tokens_per_step / len(trainer.batches.stream)
    say(
        f"training: {trainer.steps:,} steps of {trainer.tokens_per_step:,} tokens "
        f"({settings.grad_accum} x {settings.batch_size} x {settings.seq_len}) = {epochs:.2f} "
        f"epochs, {settings.optimizer}, lr {settings.lr:g} -> {settings.min_lr:g}; run folder "
        f"{trainer.folder}"
    )
    if settings.warmup_steps > trainer.steps - settings.extended_at:
        say(
            f"warning: the learning rate warms up over {settings.warmup_steps:,} steps, more than "
            f"the run has, and never reaches {settings.lr:g}: lower --warmup-steps"
        )
    if settings.extended_at:
        how = "stays" if settings.lr == settings.min_lr else "falls anew, by half a cosine"
        say(f"extended after step {settings.extended_at:,}: from there on the learning rate {how}")


def _say_pace(trainer: Trainer) -> None:
    """Say how long the run will take where our kernels are interpreted, by trying a micro-batch."""
    settings, model, device = trainer.settings, trainer.model, trainer.machine.device
    if not interpreted(device, model.config):
        return
    model.eval()  # --log-attention watches training alone
    with torch.random.fork_rng(devices=[]):
        tokens = torch.randint(model.config.vocab_size, (settings.batch_size, settings.seq_len))
        for batch in (tokens[:1], tokens):  # the first reads the kernels' source
            start = time.perf_counter()
            with trainer.machine.autocast():
                _, loss = model(batch, batch)
            assert loss is not None
            torch.autograd.grad(loss, list(model.parameters()))
    model.train()
    seconds = (time.perf_counter() - start) * settings.grad_accum / trainer.world.size
    left = trainer.steps - trainer.step
    say(
        f"our kernels are interpreted on a CPU, so a run has {INTERPRETED['steps']} steps unless "
        f"--steps is given; about {seconds:.1f} s a step, {seconds * left / 60:.1f} minutes for "
        f"{left:,}; validation by PyTorch's kernels"
    )


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Make a run folder and lock it for the block; ValueError when another run trains in it."""
    if not world().main:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(lock(folder / ".lock"))
        except TimeoutError:
            raise ValueError(
                f"another process is training in {folder}: wait for it to end, or choose another "
                "--out"
            ) from None
        yield


def begin(plan: Plan, prepared: Prepared, trainer: Trainer) -> None:
    """Write what a new run folder holds, or restore the trainer of a resumed run.

    Raises:
        ValueError: a run that cannot be resumed, or that another process has begun meanwhile.
    """
    folder = plan.folder
    if plan.resumed:
        checkpoint, damaged = load_newest(folder / "checkpoints")
        for message in damaged:
            say(message)
        extended = plan.settings.extended_at != read_config(folder)[0].extended_at
        if extended and checkpoint.state.step < plan.settings.extended_at:
            raise ValueError(
                f"the last checkpoint of {folder} is damaged, and a run is extended from there: go "
                f"on with it by --resume {folder} alone, and extend it then"
            )
        if world().main:
            remove_unfinished(folder)
        trainer.restore(checkpoint)
        say(f"resumed {folder} after step {trainer.step:,}")
        if world().main and extended:
            (folder / "result.json").unlink()  # of the run as it was
            write_config(folder, plan.settings, trainer.model.config)
    elif world().main:
        if _left_no_checkpoint(folder):  # asked again, now that nobody else can train in it
            remove_unfinished(folder)
            say(f"{folder} was begun before and holds no checkpoint: beginning anew")
        prepared.tokenizer.save(folder / "tokenizer.json")
        write_config(folder, trainer.settings, trainer.model.config)
