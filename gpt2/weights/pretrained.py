"""Trained weights: GPT-2's own, others in its format, or those of a run.

    model = load_pretrained("gpt2")                      # from the Hugging Face hub
    model = load_pretrained("folder", attn="triton")     # Hugging Face's format, or a run folder

`find_pretrained` reads the description of a checkpoint, so that what does not fit is refused before
gigabytes are fetched and read; `Pretrained.build` reads the weights.
"""

import dataclasses
import itertools
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2.common.json_files import read_json_object
from gpt2.config import PORTABLE, GPTConfig, TrainConfig
from gpt2.model import GPT
from gpt2.runs.run import check_size, load_run, read_config
from gpt2.tokenizer import Tokenizer
from gpt2.weights.hub import NAMES, fetch_description, fetch_weights, repository_of
from gpt2.weights.hugging_face import VOCABULARY, as_stored, config_from_hugging_face, our_name
from gpt2.weights.tensors import LOADABLE, read_tensors, stored_bytes

SHIPPED = Path(__file__).parents[1] / "pretrained_demo"
# Options that change no weight.
_FREE = {
    "block_size", "dropout", "window", "attend", "restart_positions", "end_of_text", "recompute",
    *PORTABLE,
}  # fmt: skip
# Of weights in files, which are converted to float32.
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Pretrained:
    """A checkpoint that can be loaded.

    Attributes:
        name: the name that it was asked for by.
        folder: the folder with its description.
        config: the model.
        repository: the hub's owner/name to fetch the weights from; None if the folder has them.
        is_run: True for a run folder of `python train.py`.
        note: one line that says which weights these are, to be printed.
    """

    name: str
    folder: Path
    config: GPTConfig
    repository: str | None
    is_run: bool
    note: str

    def build(self, config: GPTConfig) -> GPT:
        """Build the model of `config` with the checkpoint's weights, in float32 on the CPU.

        Args:
            config: the checkpoint's, but for the backends, dropout, window, documents, and a
                shorter `block_size` or `vocab_size`, to which learned positions and the rows of the
                vocabulary are cut.

        Raises:
            ValueError: a longer `block_size` or `vocab_size`; a tensor or file that is missing,
                damaged, of another shape, not finite, or not part of the model.
        """
        for name, own in vars(self.config).items():
            asked = getattr(config, name)
            fewer_rows = name == "vocab_size" and not self.is_run and asked < own
            if name not in _FREE and own != asked and not fewer_rows:
                raise ValueError(f"{self.name} has {name}={own}, got {asked}")
        if config.positions == "learned" and config.block_size > self.config.block_size:
            raise ValueError(
                f"{self.name} has learned positions for {self.config.block_size} tokens, got "
                f"{config.block_size}: choose at most that many"
            )
        if self.is_run:
            return _copy_run(self.folder, config)
        if self.repository is not None:
            fetch_weights(self.repository, self.folder)
        return _read_model(self.folder, self.config, config)


def find_pretrained(path_or_name: str | Path) -> Pretrained:
    """Find a checkpoint and read its description; from the hub, fetch that much.

    Args:
        path_or_name: a run folder; a folder in Hugging Face's GPT-2 format; "demo", the model that
            ships with this code; or a model of the hub: gpt2, gpt2-medium, gpt2-large, gpt2-xl,
            distilgpt2, or owner/name, where there is no folder owner.

    Raises:
        ValueError: there is none, or its model is not one that ours can be.
    """
    name, folder = str(path_or_name), Path(path_or_name)
    repository, note = None, f"weights: {name}"
    # A folder may be called as a model is (this package is), so it counts only with its content.
    described = (folder / "config.json").is_file()
    if not described and name == "demo":
        folder = SHIPPED
    elif not described:
        repository = repository_of(name)
        # runs/dmo is a mistyped path where there is a folder runs, not a model of the hub.
        is_path = folder.exists() or ("/" in name and folder.parent.exists())
        if repository is None or (is_path and name not in NAMES):
            what = "has no config.json" if folder.exists() else "does not exist"
            raise ValueError(
                f"{folder} {what}: give a folder of a run or in Hugging Face's GPT-2 format, demo, "
                f"or a model of the Hugging Face hub ({', '.join(NAMES)} or owner/name)"
            )
        folder, source = fetch_description(repository)
        note += f" ({source})"
    path = folder / "config.json"
    values = read_json_object(path)
    is_run = "train" in values or "model" in values
    if is_run:
        own = read_config(folder)[1]
        config = dataclasses.replace(own, dropout=0.0, recompute="none", **PORTABLE)
    else:
        config = config_from_hugging_face(values, path)
    return Pretrained(name, folder, config, repository, is_run, note)


def load_pretrained(
    path_or_name: str | Path,
    *,
    attn: str = "sdpa",
    dropout: float = 0.0,
    block_size: int | None = None,
) -> GPT:
    """Load a model with trained weights, in float32 on the CPU, in evaluation mode.

    Args:
        path_or_name: as for `find_pretrained`.
        attn: attention backend.
        dropout: rate in training; the checkpoint's own rates are not used.
        block_size: cut learned positions to this many; None keeps all.

    Raises:
        ValueError: there is no such checkpoint, or it cannot be loaded; the message names the file
            and the tensor.
    """
    found = find_pretrained(path_or_name)
    if block_size is None:
        block_size = found.config.block_size
    config = dataclasses.replace(found.config, attn=attn, dropout=dropout, block_size=block_size)
    return found.build(config).eval()


def begin_from(found: Pretrained, config: TrainConfig, given: Collection[str]) -> TrainConfig:
    """Take the model and the tokenizer of a checkpoint into the settings of a run.

    Args:
        found: the checkpoint.
        config: what is asked of the run.
        given: the names of the settings that were chosen there.

    Raises:
        ValueError: an option that contradicts the checkpoint, or a tokenizer that does not fit it.
    """
    if config.preset is not None:
        raise ValueError(
            f"--preset {config.preset} and --init-from {found.name} both say what model to train: "
            "give one of them"
        )
    changes: dict[str, Any] = {"tokenizer": config.tokenizer or str(found.folder)}
    remedy = "give the one that the weights were trained with, by --tokenizer"
    try:
        tokenizer = Tokenizer.load(changes["tokenizer"])
    except ValueError as error:
        raise ValueError(f"{str(error).rstrip('.')}. Or {remedy}") from error
    own = fit_vocabulary(found, tokenizer, f"the tokenizer {changes['tokenizer']}", remedy)
    for name, has in vars(own).items():
        if not hasattr(config, name) or name in PORTABLE or name == "dropout":
            continue
        asked = getattr(config, name)
        if name not in given:
            changes[name] = has
        elif asked != has and name not in _FREE:
            raise ValueError(
                f"--{name.replace('_', '-')} {asked} contradicts --init-from {found.name}, "
                f"which has {has}: leave it out"
            )
    if config.seq_len is None:
        changes["seq_len"] = own.block_size
    elif own.positions == "learned" and config.seq_len > own.block_size:
        raise ValueError(
            f"--seq-len {config.seq_len} is longer than the {own.block_size} learned positions of "
            f"{found.name}: give at most that many"
        )
    return dataclasses.replace(config, **changes)


def fit_vocabulary(found: Pretrained, tokenizer: Tokenizer, what: str, remedy: str) -> GPTConfig:
    """Cut the vocabulary of a model to its tokenizer's where its rows are padded.

    They are padded where their number is that of the tokens rounded up to a multiple of 8, 16, ...
    or 1024, as by nanoGPT (50,304) or transformers' `pad_to_multiple_of`. The other rows stand for
    no token: left out, they can be neither drawn nor take a part of the probability.

    Args:
        found, tokenizer: model and tokenizer.
        what: the tokenizer in words, for the message.
        remedy: for the message.

    Returns:
        The configuration of the model to build.

    Raises:
        ValueError: the tokenizer has another number of tokens, and that is not why.
    """
    rows, tokens = found.config.vocab_size, tokenizer.vocab_size
    padded = not found.is_run and any(rows == -(-tokens // (8 << k)) * (8 << k) for k in range(8))
    if rows != tokens and not padded:
        raise ValueError(f"{what} has {tokens} tokens, and {found.name} has {rows}: {remedy}")
    return dataclasses.replace(found.config, vocab_size=tokens)


def _copy_run(folder: Path, config: GPTConfig) -> GPT:
    """Build a model of `config` with the best weights of a run."""
    state = load_run(folder, device="cpu").model.state_dict()
    if config.positions == "learned":
        state["wpe.weight"] = state["wpe.weight"][: config.block_size]
    model = GPT(config)
    model.load_state_dict(state)
    return model


@torch.no_grad()
def _read_model(folder: Path, stored: GPTConfig, config: GPTConfig) -> GPT:
    """Build a model of `config` from the files of `folder`, which hold a model of `stored`."""
    tensors = read_tensors(folder)
    first = list(itertools.islice(tensors, 1))  # files that cannot be read are named before
    check_size(stored, stored_bytes(folder) // 2, folder / "config.json")  # 2 bytes a number
    with torch.device("meta"):
        model = GPT(config)
    assert not list(model.buffers()), "what no file holds would stay undefined"
    model.to_empty(device="cpu")
    for padded in {model.wte.weight, model.head_weight}:
        padded.zero_()
    parameters = dict(model.named_parameters())
    seen: set[str] = set()
    files: set[str] = set()
    head = None
    for path, stored_name, tensor in itertools.chain(first, tensors):
        files.add(path.name)
        name = our_name(stored_name)
        if name is None:
            continue
        if name in seen:
            raise ValueError(f"{path}: {stored_name} is there twice")
        seen.add(name)
        tied_head = name == "lm_head.weight" and config.tie
        parameter = parameters.get("wte.weight" if tied_head else name)
        if parameter is None:
            raise ValueError(
                f"{path}: {stored_name} is no part of a GPT-2 language model with "
                f"n_layer={config.n_layer}, as config.json describes it"
            )
        view = as_stored(name, parameter, config)
        rows = {"wpe.weight": stored.block_size} | dict.fromkeys(VOCABULARY, stored.vocab_size)
        _check(path, stored_name, tensor, (rows.get(name, len(view)), *view.shape[1:]))
        if tied_head:
            head = path, stored_name, tensor.float()
            continue
        view.copy_(tensor[: len(view)])  # positions and padding of the vocabulary are cut
        if not view.isfinite().all():
            raise ValueError(f"{path}: {stored_name} has values that are not finite in float32")
    missing = [name for name in parameters if name not in seen]
    if missing:
        raise ValueError(
            f"{folder}: {', '.join(sorted(files)) or 'an empty file'} lacks "
            f"{', '.join(missing[:3])}"
            f"{f' and {len(missing) - 3} more' if len(missing) > 3 else ''} of the model that "
            "config.json describes"
        )
    tokens = config.vocab_size
    if head is not None and not torch.equal(head[2][:tokens], model.wte.weight[:tokens]):
        raise ValueError(
            f"{head[0]}: {head[1]} is not wte.weight, although config.json says that they are tied "
            "(tie_word_embeddings): set it to false there to load both"
        )
    return model


def _check(path: Path, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.dtype not in _DTYPES:
        raise ValueError(f"{path}: {name} holds {_kind(tensor)} ({tensor.dtype}): {LOADABLE}")
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise ValueError(
            f"{path}: {name} is {tensor.layout} on {tensor.device.type}: only dense weights can be "
            "loaded"
        )
    if tuple(tensor.shape) != shape:
        raise ValueError(
            f"{path}: {name} has shape {tuple(tensor.shape)}, and config.json describes a model "
            f"with {shape}"
        )


def _kind(tensor: Tensor) -> str:
    if tensor.dtype.is_floating_point or tensor.is_quantized:
        return "quantised weights"  # in fewer than 16 bits
    if tensor.dtype.is_complex:
        return "complex numbers"
    return "truth values" if tensor.dtype == torch.bool else "whole numbers"
