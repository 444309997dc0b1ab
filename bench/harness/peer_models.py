"""GPT-2 models of other projects, as installed by the user, for our training step.

    transformers   `GPT2LMHeadModel` with random weights, where the package is installed
    <folder>       `model.py` of the folder that the environment variable GPT2_BENCH_PEER names,
                   with nanoGPT's interface; the variant carries the folder's name

Each is a module `(idx, targets) -> (logits, loss)`, which keeps its logits until the step ends, as
its own training loop does. Batch, autocast, AdamW and gradient clipping are the same for all. The
vocabulary is the one that their users have: GPT-2's own for transformers; padded, as nanoGPT's
trainer pads it, for the folder.

transformers is imported here by name, and by nothing else in the project: our runtime never needs
it. It looks for a package `kernels` on PyPI, which from the repository's root would be our folder,
so that is out of sight meanwhile.
"""

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bench.harness.peers import missing
from bench.harness.results import ROOT
from gpt2.config import GPTConfig

PEER_VARIABLE = "GPT2_BENCH_PEER"
TRANSFORMERS, CHECKOUT = "transformers", "checkout"


def checkout_name() -> str:
    """The name of the variant for GPT2_BENCH_PEER: that of the folder."""
    return _checkout().name if PEER_VARIABLE in os.environ else "model.py"


def unavailable(peer: str) -> str | None:
    """The reason to skip a peer; None if it can run."""
    if peer == TRANSFORMERS:
        return missing(TRANSFORMERS)
    if PEER_VARIABLE not in os.environ:
        return f"set {PEER_VARIABLE} to a folder with nanoGPT's model.py to compare with it"
    if not (_checkout() / "model.py").is_file():
        return f"{PEER_VARIABLE}={os.environ[PEER_VARIABLE]} has no model.py"
    return None


def build_peer(peer: str, config: GPTConfig) -> nn.Module:
    """A peer's model of shape `config`, with random weights, on the default device."""
    return _transformers(config) if peer == TRANSFORMERS else _from_checkout(config)


def _transformers(config: GPTConfig) -> nn.Module:
    with _without_our_kernels():
        package = importlib.import_module(TRANSFORMERS)
        shape = package.GPT2Config(
            n_layer=config.n_layer, n_head=config.n_head, n_embd=config.n_embd,
            vocab_size=config.vocab_size, n_positions=config.block_size,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        return _Transformers(package.GPT2LMHeadModel(shape))


class _Transformers(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.train()

    def forward(self, idx: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        # It shifts the labels itself: on random tokens that is as good, and costs the same.
        out = self.model(input_ids=idx, labels=targets, use_cache=False)
        return out.logits, out.loss


def _checkout() -> Path:
    return Path(os.environ[PEER_VARIABLE]).resolve()


def _from_checkout(config: GPTConfig) -> nn.Module:
    name = "gpt2_bench_peer"
    spec = importlib.util.spec_from_file_location(name, _checkout() / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    shape = module.GPTConfig(
        block_size=config.block_size, vocab_size=config.padded_vocab_size, n_layer=config.n_layer,
        n_head=config.n_head, n_embd=config.n_embd, dropout=0.0, bias=config.bias,
    )  # fmt: skip
    model: nn.Module = module.GPT(shape)
    return model


@contextmanager
def _without_our_kernels() -> Iterator[None]:
    """Hide the folder `kernels` of this repository from imports in the block."""
    path, modules = sys.path[:], {}
    for name in [n for n in sys.modules if n.partition(".")[0] == "kernels"]:
        modules[name] = sys.modules.pop(name)
    sys.path[:] = [entry for entry in path if Path(entry).resolve() != ROOT]
    try:
        yield
    finally:
        sys.path[:] = path
        sys.modules.update(modules)
