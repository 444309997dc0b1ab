"""llama.cpp, by the package `llama_cpp`, with the weights of a model of ours.

It gets them as a file in GGUF, with a vocabulary of the right size, and computes with the threads
that PyTorch has. Keys and values are in fp16, as it has them by default, but for weights in fp32.
"""

import importlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpt2.model import GPT
from gpt2.tokenizer import Tokenizer
from gpt2.tokenizer.bpe import END_OF_TEXT
from gpt2.tokenizer.vocabulary import Vocabulary
from gpt2.weights.export import export


class LlamaCpp:
    """A model of ours in llama.cpp, for one text."""

    def __init__(self, model: GPT) -> None:
        package: Any = importlib.import_module("llama_cpp")
        dtype = model.wte.weight.dtype
        kind = package.GGML_TYPE_F32 if dtype == torch.float32 else package.GGML_TYPE_F16
        threads = torch.get_num_threads()
        with TemporaryDirectory() as folder:
            export(model, _tokenizer(model), Path(folder) / "out", dtype=dtype, file_format="gguf")
            self._llama = package.Llama(
                f"{folder}/out/model.gguf", n_ctx=model.config.block_size, type_k=kind, type_v=kind,
                n_threads=threads, n_threads_batch=threads, verbose=False,
            )  # fmt: skip

    def read(self, idx: Tensor) -> Tensor:
        """The logits (1, V) after the tokens idx (1, T), which follow those that are held."""
        self._llama.eval(idx[0].tolist())
        logits = self._llama._ctx.get_logits()
        return torch.from_numpy(np.ctypeslib.as_array(logits, (1, self._llama.n_vocab())).copy())

    def forget_after(self, length: int) -> None:
        """Keep the first `length` tokens alone."""
        self._llama.n_tokens = length


def _tokenizer(model: GPT) -> Tokenizer:
    """As many tokens as the model has: bytes, pairs of bytes, and the end of a text."""
    single = [bytes([byte]) for byte in range(256)]
    merges = [(a, b) for a in single for b in single][: model.config.vocab_size - 257]
    tokens = [*single, *(a + b for a, b in merges)]
    ids = {token: id for id, token in enumerate(tokens)}
    return Tokenizer(Vocabulary(ids, merges, {END_OF_TEXT: len(tokens)}))
