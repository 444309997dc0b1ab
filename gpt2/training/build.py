"""From a command line to a trainer: settle what was left open, prepare the data, build the model.

Everything that can be refused is refused before the run folder is made.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from gpt2.common.devices import choose_device, device_memory, human_bytes
from gpt2.common.distributed import say, world
from gpt2.common.files import lock, remove_leftovers
from gpt2.config import GPTConfig, TrainConfig, model_config, with_preset
from gpt2.data.prepare import Prepared, prepare
from gpt2.model import GPT, count_parameters
from gpt2.runs.checkpoint import load_newest, remove_unfinished
from gpt2.runs.resume import resumed_config
from gpt2.runs.run import write_config
from gpt2.training.estimate import training_memory
from gpt2.training.machine import Machine, choose_machine
from gpt2.training.out_of_memory import oom_advice, what_to_lower
from gpt2.training.trainer import Trainer
from gpt2.weights.pretrained import Pretrained, begin_from, find_pretrained


@dataclass(frozen=True)
class Plan:
    """A run about to start or to go on: its folder and its settings, none of them left open.

    `start` has the weights that it begins from; None where they are random, or those of the run.
    """

    folder: Path
    config: TrainConfig
    resumed: bool
    start: Pretrained | None = None

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Make the folder and hold it; ValueError when another run trains in it."""
        if not world().main:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            try:
                stack.enter_context(lock(self.folder / ".lock", patience=0))
            except TimeoutError:
                raise ValueError(
                    f"another process is training in {self.folder}: wait for it to end, or choose "
                    "another --out"
                ) from None
            yield


def plan(config: TrainConfig) -> Plan:
    """Fill in what `config` leaves open: from the preset, or from the run to resume.

    Raises:
        ValueError: an unknown preset, an --out that holds a run, a --resume that holds none or that
            is given together with settings which it cannot change, an --init-from that cannot be
            loaded or that contradicts other settings.
    """
    if config.resume is not None:
        return Plan(Path(config.resume), resumed_config(config), resumed=True)
    device, _ = choose_device(config.device)
    start = None
    if config.init_from is not None:
        start = find_pretrained(config.init_from)
        config = begin_from(start, config)
    config = with_preset(config, "demo" if device.type == "cpu" else "mini")
    if config.out is not None:
        folder = Path(config.out)
        if (folder / "config.json").exists():
            raise ValueError(
                f"{folder} already holds a run, which is never overwritten: go on with it by "
                f"--resume {folder}, or choose another --out"
            )
    else:
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(config.data).name).strip("-.") or "run"
        model = Path(config.init_from).resolve().name if config.init_from else config.preset
        folder = base = Path("runs") / f"{name}-{model}"
        number = 1
        while folder.exists():
            number += 1
            folder = base.with_name(f"{base.name}-{number}")
    return Plan(folder, config, resumed=False, start=start)


def prepare_data(the_plan: Plan) -> Prepared:
    """The tokenizer and the tokens of a run; a resumed run keeps its tokenizer."""
    config = the_plan.config
    tokenizer = config.tokenizer
    if the_plan.resumed:
        tokenizer = str(the_plan.folder / "tokenizer.json")
    assert config.vocab_size is not None
    prepared = prepare(
        config.data,
        tokenizer=tokenizer,
        vocab_size=config.vocab_size,
        cache_dir=Path(config.cache_dir),
    )
    if "train" not in prepared.splits:
        raise ValueError(
            f"{config.data} has no text to train on, only {', '.join(prepared.splits)}"
        )
    for line in prepared.notes:
        say(line)
    return prepared


def build(the_plan: Plan, prepared: Prepared) -> Trainer:
    """Build the trainer of a run and say what it will do; nothing is written yet.

    Raises:
        ValueError: settings that this machine cannot run, or too little text.
    """
    config = the_plan.config
    assert config.preset is not None
    device, note = choose_device(config.device)
    shape = model_config(config, prepared.tokenizer.vocab_size)
    machine, shape = choose_machine(device, config, shape)
    for line in (*([note] if note else []), *machine.notes):
        say(line)
    torch.manual_seed(config.seed)
    alone = world().size == 1
    with oom_advice(lambda: what_to_lower(config, shape, machine, alone=alone)):
        if the_plan.start is None:
            model = GPT(shape).to(device)
        else:
            say(the_plan.start.note)
            model = the_plan.start.build(shape).to(device)
    if world().rank:  # equal weights in all processes, but other dropout masks
        torch.manual_seed(config.seed + world().rank)
    trainer = Trainer(
        config,
        model,
        machine,
        prepared.splits["train"],
        prepared.splits["valid"],
        folder=the_plan.folder,
        tokenizer_hash=prepared.tokenizer.hash,
        bos_id=prepared.tokenizer.eot_id,
        data_hash=prepared.fingerprint,
    )
    _say_size(trainer, shape, machine)
    return trainer


def begin(the_plan: Plan, prepared: Prepared, trainer: Trainer) -> None:
    """Write what a new run folder holds, or put the trainer where the resumed run stands.

    Raises:
        ValueError: a run that cannot be resumed.
    """
    folder = the_plan.folder
    if the_plan.resumed:
        checkpoint, damaged = load_newest(folder / "checkpoints")
        for message in damaged:
            say(message)
        if world().main:
            remove_leftovers(folder)
            remove_unfinished(folder / "checkpoints")
        trainer.restore(checkpoint)
        say(f"resumed {folder} after step {trainer.step:,}")
    elif world().main:
        prepared.tokenizer.save(folder / "tokenizer.json")
        write_config(folder, trainer.config, trainer.model.config)


def _say_size(trainer: Trainer, shape: GPTConfig, machine: Machine) -> None:
    config = trainer.config
    assert config.batch_size
    assert config.seq_len
    say(
        f"model: {config.init_from or config.preset}, {count_parameters(shape):,} parameters "
        f"({shape.n_layer} layers, {shape.n_head} heads, {shape.n_embd} wide, "
        f"vocabulary {shape.vocab_size:,}, context "
        f"{shape.block_size}; {shape.norm_position}-{shape.norm}, {shape.mlp}, {shape.positions} "
        f"positions, {'tied' if shape.tie else 'untied'} head)"
    )
    memory = training_memory(
        shape,
        batch_size=config.batch_size,
        seq_len=config.seq_len,
        dtype=machine.dtype,
        device_type=machine.device.type,
        optimizer=config.optimizer or "adamw",
        grad_accum=config.grad_accum or 1,
    )
    has = device_memory(machine.device)
    of = f", of {human_bytes(has)} on this {machine.device.type}" if has else ""
    say(f"memory, estimated: {memory}{of}")
    if has and memory.peak > 0.95 * has:
        say(
            "warning: that is likely too much. Lower --batch-size (raise --grad-accum to keep the "
            "step the same), use --recompute block, lower --seq-len, or choose a smaller --preset"
        )
    epochs = trainer.steps * trainer.tokens_per_step / len(trainer.batches.stream)
    say(
        f"training: {trainer.steps:,} steps of {trainer.tokens_per_step:,} tokens "
        f"({config.grad_accum} x {config.batch_size} x {config.seq_len}) = {epochs:.2f} epochs, "
        f"{config.optimizer}, lr {config.lr:g} -> {config.min_lr:g}; run folder {trainer.folder}"
    )
