"""Write a model in Hugging Face's GPT-2 format, for every program that reads it, or in GGUF.

    python -m gpt2.export runs/demo --out exported --dtype bf16
    python -m gpt2.export runs/demo --out exported-gguf --format gguf

The folder holds README.md, config.json, generation_config.json, tokenizer.json,
tokenizer_config.json, and model.safetensors or model.gguf. The model there computes the same
function; see `gpt2.weights.hugging_face` for what GPT-2 cannot express.
"""

import os
import secrets
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from gpt2.common.files import sync_folder, write_json
from gpt2.model import GPT
from gpt2.tokenizer import Tokenizer
from gpt2.tokenizer.bpe import END_OF_TEXT
from gpt2.weights.gguf_file import GGUF_FILE, stays_exact, write_gguf
from gpt2.weights.hugging_face import config_to_hugging_face, tensors_to_hugging_face

Format = Literal["hugging-face", "gguf"]


def export(
    model: GPT,
    tokenizer: Tokenizer,
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    file_format: Format = "hugging-face",
    card: str = "",
) -> int:
    """Write a model and its tokenizer, completely or not at all.

    Args:
        model: any mode, any device.
        tokenizer: the one that it was trained with.
        folder: does not exist yet, or is empty.
        dtype: of the stored weights; in GGUF of the matrices.
        file_format: of the weights.
        card: the content of README.md.

    Returns:
        The bytes of the file with the weights.

    Raises:
        ValueError: a folder with files in it, a model that GPT-2's format cannot express, weights
            that `dtype` cannot hold, or a library that is missing.
    """
    folder = Path(folder).absolute()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(
            f"{folder} is not an empty folder, and nothing is overwritten: choose another --out"
        )
    if tokenizer.vocab_size != model.config.vocab_size:
        raise ValueError(
            f"the model has {model.config.vocab_size} tokens and the tokenizer "
            f"{tokenizer.vocab_size}: give the one that the model was trained with"
        )
    exact = stays_exact if file_format == "gguf" else lambda name, tensor: False
    config = config_to_hugging_face(model.config, eot_id=tokenizer.eot_id, dtype=dtype)
    tensors = {
        name: _converted(name, tensor, torch.float32 if exact(name, tensor) else dtype)
        for name, tensor in tensors_to_hugging_face(model).items()
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir()
    try:
        write_json(temporary / "config.json", config)
        ends = {name: config[name] for name in ("bos_token_id", "eos_token_id")}
        write_json(temporary / "generation_config.json", ends)
        tokenizer.save(temporary / "tokenizer.json")
        write_json(temporary / "tokenizer_config.json", _tokenizer_config(model))
        (temporary / "README.md").write_text(card, encoding="utf-8")
        weights = temporary / (GGUF_FILE if file_format == "gguf" else "model.safetensors")
        if file_format == "gguf":
            write_gguf(weights, folder.name, model.config, tensors)
        else:  # transformers asks for this key
            save_file(tensors, weights, metadata={"format": "pt"})
        weights.chmod((temporary / "config.json").stat().st_mode)  # else others could not read it
        size = weights.stat().st_size
        if folder.exists():
            folder.rmdir()
        os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(folder.parent)
    return size


def _converted(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    converted = tensor.to("cpu", dtype)
    if not converted.isfinite().all():
        largest = tensor.abs().max().item()
        raise ValueError(
            f"{name} has values up to {largest:.3g}, which {dtype} cannot hold: "
            "export with --dtype fp32 or bf16, or another --checkpoint"
        )
    return converted


def _tokenizer_config(model: GPT) -> dict[str, Any]:
    return {
        # The class that reads tokenizer.json unchanged.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.config.block_size,
        **dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT),
        "clean_up_tokenization_spaces": False,
    }
