"""Small training set-ups in memory, shared by the tests of training and checkpoints."""

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from gpt2.config import GPTConfig, TrainConfig, settle
from gpt2.model import GPT
from gpt2.tokenizer import Tokenizer
from gpt2.training.machine import Machine
from gpt2.training.trainer import Trainer


class ArrayStream:
    """A TokenStream over an array in memory."""

    def __init__(self, ids: ArrayLike, n_bytes: int | None = None) -> None:
        self.ids = np.asarray(ids, dtype=np.int64)
        self.n_bytes = len(self.ids) if n_bytes is None else n_bytes

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        return self.ids[start:stop]


def document_stream(tokenizer: Tokenizer, documents: list[str]) -> ArrayStream:
    """The ids of documents, each with its end-of-text."""
    return ArrayStream([i for d in documents for i in [*tokenizer.encode(d), tokenizer.eot_id]])


def text_stream(tokens: int, vocab_size: int = 32, seed: int = 0) -> ArrayStream:
    """Tokens with something to learn: each is likely to follow the one before it by 1 or 3."""
    rng = np.random.default_rng(seed)
    return ArrayStream(np.cumsum(rng.choice([1, 3], size=tokens)) % vocab_size)


def make_trainer(
    folder, *, train=None, valid=None, model=None, dtype=torch.float32, sample=None, **settings
):
    """A trainer of a two-layer model; by default 31 windows an epoch, met by batches of 3 x 2."""
    settings = {
        "preset": "demo", "optimizer": "adamw", "seq_len": 16, "batch_size": 2, "grad_accum": 3,
        "steps": 12, "lr": 5e-3, "warmup_steps": 3,
        "log_every": 1, "eval_every": 4, "checkpoint_every": 4,
    } | settings  # fmt: skip
    config = settle(TrainConfig(**settings), "demo")
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 32, "block_size": 16}
    torch.manual_seed(config.seed)
    gpt = GPT(GPTConfig(**(shape | (model or {}))))
    machine = Machine(torch.device("cpu"), dtype, settings.get("compile", False), ())
    folder.mkdir(parents=True, exist_ok=True)
    return Trainer(
        config,
        gpt,
        machine,
        train or text_stream(16 * 31 + 5),  # type: ignore[arg-type]
        valid or text_stream(200, seed=1),  # type: ignore[arg-type]
        folder=folder,
        tokenizer_hash="test",
        bos_id=0,
        sample=sample,
    )
