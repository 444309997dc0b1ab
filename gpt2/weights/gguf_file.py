"""GGUF, the format of llama.cpp and of the programs built on it, by the library `gguf`.

Tensors have the names that llama.cpp has for GPT-2, and the layout (out, in). As by its own
converter, vectors and positions are in float32 whatever the type of the matrices.

Source: https://github.com/ggml-org/llama.cpp/blob/master/conversion/gpt2.py
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2.common.json_files import read_json_object
from gpt2.config import GPTConfig
from gpt2.weights.hugging_face import as_stored, our_name

GGUF_FILE = "model.gguf"
_POSITIONS = "transformer.wpe.weight"
_TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def stays_exact(name: str, tensor: Tensor) -> bool:
    """Tell whether a tensor is stored in float32 whatever the type of the matrices."""
    return tensor.dim() == 1 or name == _POSITIONS


def write_gguf(path: Path, name: str, config: GPTConfig, tensors: dict[str, Tensor]) -> None:
    """Write a model as one file.

    Args:
        path: of the file; config.json, tokenizer.json and tokenizer_config.json lie beside it.
        name: of the model, for people.
        tensors: as `tensors_to_hugging_face` gives them, each in the type to be stored.

    Raises:
        ValueError: the library is missing.
    """
    try:
        import gguf
    except ImportError as error:
        raise ValueError(
            "--format gguf needs the library `gguf`: pip install -e '.[gguf]'"
        ) from error
    writer = gguf.GGUFWriter(path, "gpt2")
    stored = _TYPES[tensors["transformer.wte.weight"].dtype]
    writer.add_name(name)
    writer.add_block_count(config.n_layer)
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(1e-5)
    writer.add_file_type(
        gguf.LlamaFileType.ALL_F32 if stored == "F32" else gguf.LlamaFileType[f"MOSTLY_{stored}"]
    )
    _add_tokenizer(gguf, writer, path.parent)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, config.n_layer)
    for theirs, tensor in tensors.items():
        ours = our_name(theirs)
        assert ours is not None, "a mask is no weight"
        kind = gguf.GGMLQuantizationType[_TYPES[tensor.dtype]]
        values = as_stored(ours, tensor, config).float().contiguous().numpy()
        part, _, suffix = ours.rpartition(".")
        writer.add_tensor(f"{names[part]}.{suffix}", gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(gguf: Any, writer: Any, folder: Path) -> None:
    tokenizer = read_json_object(folder / "tokenizer.json")
    special = {token["content"] for token in tokenizer["added_tokens"]}
    tokens = list(tokenizer["model"]["vocab"])  # in order of their ids
    types = [gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_add_bos_token(False)
    gguf.SpecialVocab(folder, load_merges=True).add_to_gguf(writer, quiet=True)
