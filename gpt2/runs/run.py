"""A run folder as other tools read it: configuration, tokenizer and a checkpoint's weights."""

import dataclasses
import glob
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2.common.devices import choose_device
from gpt2.common.files import write_json
from gpt2.common.json_files import from_json, read_json_object
from gpt2.config import PORTABLE, GPTConfig, Settings, TokenType, TrainConfig, settle
from gpt2.data.sources import BUILT_IN
from gpt2.model import GPT
from gpt2.runs.checkpoint import (
    best_checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_weights,
    step_of,
)
from gpt2.tokenizer import Tokenizer


@dataclass(frozen=True)
class Run:
    """A trained model in evaluation mode, its tokenizer, and where they come from.

    Attributes:
        name: the name that the model was opened by, such as runs/demo or gpt2.
        folder: the run folder, or the folder with the Hugging Face files.
        model: on the device that was asked for.
        tokenizer: the model's.
        config: the settings of the training run; None for weights that come without them.
        step: optimizer steps taken; None where it is not recorded.
    """

    name: str
    folder: Path
    model: GPT
    tokenizer: Tokenizer
    config: Settings | None = None
    step: int | None = None

    def __str__(self) -> str:
        return self.name if self.step is None else f"{self.name} step {self.step}"

    def choose_data(self, data: str | None, token_type: TokenType | None) -> dict[str, Any]:
        """What `prepare` is asked for: `data` and `token_type`, the values of these options, or by
        default what the run was trained on.

        Raises:
            ValueError: no --data, and what the model was trained on is not recorded or not here.
        """
        if data is None and self.config is None:
            raise ValueError(
                f"{self.name} does not record what it was trained on: choose a text with --data"
            )
        if data is None and self.config is not None:
            data, token_type = self.config.data, token_type or self.config.token_type
            if not (data in BUILT_IN or glob.has_magic(data) or Path(data).exists()):
                raise ValueError(
                    f"{self.name} was trained on {data}, and there is no such file or folder here: "
                    "choose a text with --data"
                )
        return {"data": data, "token_type": token_type}


def load_run(folder: str | Path, *, checkpoint: str = "best", device: str = "auto") -> Run:
    """Load a run for evaluation or generation.

    Args:
        folder: what `python train.py` made.
        checkpoint: "best" (lowest validation loss; the last one if none was measured), "last", or
            the number of a step.
        device: "auto", or where to put the model.

    Raises:
        ValueError: not a run folder, no such checkpoint, or a damaged one; the message says which.
    """
    folder = Path(folder)
    config, model_config = read_config(folder)
    path = _find_checkpoint(folder / "checkpoints", checkpoint)
    loaded = load_checkpoint(path, weights_only=True)
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    if tokenizer.hash != loaded.state.tokenizer_hash:
        raise ValueError(
            f"{folder / 'tokenizer.json'} is not the tokenizer that {path} was trained with"
        )
    if tokenizer.vocab_size != model_config.vocab_size:
        raise ValueError(
            f"{folder / 'config.json'} says vocab_size={model_config.vocab_size}, and the "
            f"tokenizer beside it has {tokenizer.vocab_size} tokens"
        )
    there = sum(tensor.numel() for tensor in loaded.model.values())
    check_size(model_config, there, folder / "config.json")
    where, _ = choose_device(device)
    model = GPT(dataclasses.replace(model_config, **PORTABLE))
    load_weights(model, loaded.model, f"{path}, as {folder / 'config.json'} describes it,")
    return Run(
        name=str(folder),
        folder=folder,
        model=model.to(where).eval(),
        tokenizer=tokenizer,
        config=config,
        step=loaded.state.step,
    )


def write_config(folder: Path, config: Settings, model_config: GPTConfig) -> None:
    """Write `folder`/config.json."""
    write_json(
        folder / "config.json",
        {"train": dataclasses.asdict(config), "model": dataclasses.asdict(model_config)},
    )


def read_config(folder: Path) -> tuple[Settings, GPTConfig]:
    """Read `folder`/config.json.

    Raises:
        ValueError: there is none, or it does not hold the configuration of a run.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} is not a run folder: it has no config.json. "
            "Give the folder that `python train.py` printed (such as runs/python-docs-demo)."
        )
    return read_config_file(path)


def read_config_file(path: Path) -> tuple[Settings, GPTConfig]:
    content = read_json_object(path)
    asked = content.get("train")
    if isinstance(asked, dict) and "tensorboard" in asked:  # of a run before --track
        asked["track"] = "tensorboard" if asked.pop("tensorboard") else None
    try:
        train = settle(from_json(TrainConfig, asked))
        return train, from_json(GPTConfig, content.get("model"))
    except ValueError as error:
        raise ValueError(f"{path} does not hold the configuration of a run: {error}") from error


def _find_checkpoint(folder: Path, which: str) -> Path:
    paths = list_checkpoints(folder)
    if not paths:
        raise ValueError(f"{folder} holds no checkpoint: the run ended before its first one")
    if which == "last":
        return paths[-1]
    if which == "best":
        return best_checkpoint(folder) or paths[-1]
    for path in paths:
        if which.isdigit() and step_of(path) == int(which):
            return path
    steps = ", ".join(str(step_of(p)) for p in paths)
    raise ValueError(
        f"no checkpoint {which!r} in {folder}: choose best, last, or a step of {steps}"
    )


_SMALL = 1 << 26  # numbers: what does not fit is found out one by one, tensors are named then


_TABLE = 1 << 29  # sinusoidal positions


def check_size(config: GPTConfig, there: int, path: Path) -> None:
    """Refuse the description of a model that is far larger than its weights: it would take memory
    without end, and then not fit.

    Args:
        config: as described.
        there: how many numbers the weights are at most.
        path: the description, for the message.
    """
    C = config.n_embd
    numbers = C * config.vocab_size * (1 if config.tie else 2)
    numbers += config.n_layer * (4 * C * C + 2 * C * config.mlp_width)
    numbers += C * config.block_size
    in_no_file = _SMALL if config.positions == "learned" else _TABLE
    if numbers > there + in_no_file:
        raise ValueError(
            f"{path} describes a model of {numbers:,} numbers or more, and its weights are at most "
            f"{there:,}: they do not belong together"
        )
