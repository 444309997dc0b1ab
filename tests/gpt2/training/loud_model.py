"""Tiny models, for tests, whose weights are so large that every token matters to the next one."""

import torch

from gpt2.config import GPTConfig
from gpt2.model import GPT

V, CONTEXT = 37, 40


def loud_model(**options) -> GPT:
    """A model in evaluation mode, without gradients; `options` as for GPTConfig."""
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": V, "block_size": CONTEXT}
    model = GPT(GPTConfig(**(shape | options))).eval().requires_grad_(False)
    for p in model.parameters():
        p.add_(torch.randn_like(p), alpha=0.3)
    return model
