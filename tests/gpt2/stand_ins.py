"""Models whose probabilities are known, a tokenizer of bytes, a run that was never trained."""

from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from gpt2.config import GPTConfig, TrainConfig, settle
from gpt2.model import GPT
from gpt2.runs.checkpoint import Checkpoint, TrainerState, save_checkpoint
from gpt2.runs.run import write_config
from gpt2.tokenizer import Tokenizer


def byte_tokenizer() -> Tokenizer:
    """One token for each byte, and <|endoftext|>: 257 in all."""
    return Tokenizer.train(["a"], 257)


class Bigram(nn.Module):
    """p(next token | token) from a table (V, V), whatever stood before."""

    def __init__(self, p: Tensor, block_size: int) -> None:
        super().__init__()
        self.log_p = nn.Parameter(p.double().log())
        self.config = SimpleNamespace(block_size=block_size, vocab_size=len(p))

    def hidden(self, idx: Tensor) -> Tensor:
        assert idx.shape[1] <= self.config.block_size
        return self.log_p[idx]

    def logits(self, x: Tensor) -> Tensor:
        return x

    def forward(self, idx: Tensor, targets: Tensor) -> tuple[None, Tensor]:
        logits = self.logits(self.hidden(idx)).flatten(0, 1)
        return None, nn.functional.cross_entropy(logits, targets.flatten())


def random_bigram(vocab_size: int, block_size: int, seed: int = 0) -> Bigram:
    p = torch.rand(vocab_size, vocab_size, generator=torch.Generator().manual_seed(seed)) + 0.1
    return Bigram(p / p.sum(dim=1, keepdim=True), block_size)


class ByPlace(nn.Module):
    """-log p is `cost` times the number of tokens that a window shows before the target."""

    def __init__(self, block_size: int, cost: float) -> None:
        super().__init__()
        self.cost = nn.Parameter(torch.tensor(cost, dtype=torch.float64))
        self.config = SimpleNamespace(block_size=block_size, vocab_size=2)

    def forward(self, idx: Tensor, targets: Tensor) -> tuple[None, Tensor]:
        seen = torch.arange(1, idx.shape[1] + 1).expand_as(idx)[targets >= 0]
        return None, (self.cost * seen).mean()


def write_run(folder: Path, data: Path, tokenizer: Tokenizer, block_size: int) -> GPT:
    """A run folder as the tools find it, of a small model with random weights."""
    folder.mkdir()
    tokenizer.save(folder / "tokenizer.json")
    torch.manual_seed(0)
    model = GPT(
        GPTConfig(
            n_layer=1,
            n_head=2,
            n_embd=16,
            vocab_size=tokenizer.vocab_size,
            block_size=block_size,
        )
    ).eval()
    for parameter in model.parameters():  # far from uniform
        parameter.data.mul_(8)
    write_config(folder, settle(TrainConfig(data=str(data))), model.config)
    state = TrainerState(step=7, tokenizer_hash=tokenizer.hash, val_loss=1.0)
    save_checkpoint(folder / "checkpoints", Checkpoint(model.state_dict(), {}, {}, state))
    return model
