"""Hugging Face's GPT-2 format, both ways: config.json, and the layout of the tensors.

Tensors are named there as ours, most often with the prefix `transformer.`. They differ in this:

    linear layers of a block       transposed, (in, out): transformers has them as `Conv1D`
    wte, lm_head                   V rows, where ours are padded to `padded_vocab_size`; files may
                                   have padding of their own, which `fit_vocabulary` cuts
    attn.bias, attn.masked_bias    the causal mask, in old files: no weights

A model that only one of the two can express is refused with the reason.
"""

import dataclasses
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2.config import GPTConfig
from gpt2.model import GPT

_PREFIX = "transformer."
_WRAPPERS = re.compile(r"(_orig_mod\.|module\.)+")  # of torch.compile and of DDP
VOCABULARY = ("wte.weight", "lm_head.weight")
_TRANSPOSED = re.compile(r"h\.\d+\.(attn|mlp)\.(c_attn|c_fc|c_proj)\.weight")
_MASK = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")

_SHAPE = {
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
    "vocab_size": "vocab_size",
    "n_positions": "block_size",
}
# Where GPT-2's code has a choice and ours has none: the values that we compute, the default first.
_FIXED: dict[str, tuple[tuple[Any, ...], str]] = {
    "activation_function": (
        ("gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_accurate", "gelu_fast"),
        "the MLP has GPT-2's GELU in its tanh form",
    ),
    "layer_norm_epsilon": ((1e-5,), "LayerNorm adds 1e-5 to the variance"),
    "scale_attn_weights": ((True,), "attention divides its scores by the root of the head width"),
    "scale_attn_by_inverse_layer_idx": ((False,), "attention scales scores alike in all layers"),
    "reorder_and_upcast_attn": (
        (False,),
        "attention scales scores, not keys, and leaves their type to the backend",
    ),
    "add_cross_attention": ((False,), "the model is a decoder alone"),
}
_EXPRESSIBLE = {
    "mlp": ("gelu", "its MLP is two linear layers with GELU between them"),
    "norm": ("layernorm", "its norms are LayerNorms"),
    "norm_position": ("pre", "its norms stand before the sub-layers"),
    "positions": ("learned", "its positions are a table of learned vectors"),
    "window": (None, "its attention sees every earlier position"),
    "attend": ("everything", "its attention sees every earlier position"),
}


def config_from_hugging_face(values: Mapping[str, Any], path: Path) -> GPTConfig:
    """Translate a config.json into the model that it describes.

    Dropout rates are left out: they belong to a training run, not to the weights.

    Args:
        values: the content of the file.
        path: the file, for messages.

    Raises:
        ValueError: no GPT-2, an incomplete description, or one of a model that ours cannot be.
    """
    kind = values.get("model_type", "gpt2")
    if kind != "gpt2":
        kind = reprlib.repr(kind)
        raise ValueError(f"{path} describes a model of type {kind}; only gpt2 can be loaded")
    for name, (accepted, reason) in _FIXED.items():
        value = values.get(name, accepted[0])
        if value not in accepted:
            raise ValueError(
                f"{path}: {name}={reprlib.repr(value)} cannot be loaded: here {reason} "
                f"({name}={accepted[0]!r})"
            )
    shape: dict[str, Any] = {}
    for name, ours in _SHAPE.items():
        value = values.get(name)
        if type(value) is not int:
            raise ValueError(
                f"{path}: {name} must be a whole number, got {reprlib.repr(value)}: is this the "
                "config.json of a GPT-2 model?"
            )
        shape[ours] = value
    inner = values.get("n_inner")
    if inner is not None and (type(inner) is not int or inner < 1):
        inner = reprlib.repr(inner)
        raise ValueError(f"{path}: n_inner must be a whole number or null, got {inner}")
    try:
        return GPTConfig(**shape, n_inner=inner, tie=bool(values.get("tie_word_embeddings", True)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def config_to_hugging_face(config: GPTConfig, *, eot_id: int, dtype: torch.dtype) -> dict[str, Any]:
    """Write the content of config.json for a model of `config` whose weights are in `dtype`.

    Raises:
        ValueError: GPT-2's format cannot express the model.
    """
    for name, (expected, reason) in _EXPRESSIBLE.items():
        value = getattr(config, name)
        if value != expected:
            raise ValueError(
                f"a model with {name}={value} cannot be written in GPT-2's format: {reason} "
                f"({name}={expected})"
            )
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **{name: getattr(config, ours) for name, ours in _SHAPE.items()},
        "n_ctx": config.block_size,  # as in OpenAI's own files; transformers 5 leaves it out
        "n_inner": config.n_inner,
        **{name: accepted[0] for name, (accepted, _) in _FIXED.items()},
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), config.dropout),
        "tie_word_embeddings": config.tie,
        "bos_token_id": eot_id,
        "eos_token_id": eot_id,
        "dtype": str(dtype).removeprefix("torch."),
    }


def our_name(name: str) -> str | None:
    """Translate the name of a tensor in a file into ours; None for a causal mask."""
    name = _WRAPPERS.sub("", name, count=1) if _WRAPPERS.match(name) else name
    name = name.removeprefix(_PREFIX)
    return None if _MASK.fullmatch(name) else name


def as_stored(name: str, parameter: Tensor, config: GPTConfig) -> Tensor:
    """View a parameter of a model of `config` in the layout of the files, to read or to fill it."""
    if name in VOCABULARY:
        return parameter[: config.vocab_size]
    return parameter.T if _TRANSPOSED.fullmatch(name) else parameter


def tensors_to_hugging_face(model: GPT) -> dict[str, Tensor]:
    """Name and lay out the weights of `model` as files do, without padding.

    GPT-2 has biases everywhere. A model without them gets zeros: exactly the same function.
    """
    config = model.config
    state = model.state_dict()
    with torch.device("meta"):
        whole = GPT(dataclasses.replace(config, bias=True)).state_dict()
    return {
        name if name == "lm_head.weight" else _PREFIX + name: as_stored(
            name, state[name] if name in state else torch.zeros(like.shape), config
        ).contiguous()
        for name, like in whole.items()
    }
