"""Small models, texts, tokenizers and runs for tests, and Python in a process of its own."""

import functools
import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gpt2.config import GPTConfig, TrainConfig, settle
from gpt2.model import GPT
from gpt2.runs.checkpoint import Checkpoint, TrainerState, save_checkpoint
from gpt2.runs.metrics import read_metrics
from gpt2.runs.run import write_config
from gpt2.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
STORIES = "<|endoftext|>\n".join(
    f"Story {i}. The {'cat' if i % 3 else 'dog'} saw {i} birds, and then it ran home.\n" * 6
    for i in range(60)
)
V, CONTEXT = 37, 40


def every_combination(**options: Sequence[Any]) -> pytest.MarkDecorator:
    """Parametrize a test by `options`, a dictionary, with each combination of the values."""
    found = [dict(zip(options, values, strict=True)) for values in product(*options.values())]
    return pytest.mark.parametrize("options", found, ids=lambda o: "-".join(map(str, o.values())))


def _process(cwd: Path, environment: dict[str, str]) -> dict[str, Any]:
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return {"cwd": cwd, "env": os.environ | own | environment, "text": True, **pipes}


def start_python(*words: str, cwd: Path = ROOT, **environment: str) -> subprocess.Popen[str]:
    """Start Python on a command line, with this code on its path."""
    return subprocess.Popen([sys.executable, *words], **_process(cwd, environment))


def run_python(*words, cwd=ROOT, timeout=400, **environment):
    """Run Python on a command line to its end, with this code on its path."""
    return subprocess.run([sys.executable, *words], **_process(cwd, environment), timeout=timeout)


@functools.cache
def _server() -> subprocess.Popen[str]:
    """Has imported PyTorch and the product once, and forks; it ends with this process."""
    return start_python("-c", "from tests.campaigns.faults.processes import serve; serve()")


def run_forked(
    *words: str, cwd: Path = ROOT, ranks: Sequence[dict[str, str]] = ({},), **environment: str
) -> subprocess.CompletedProcess[str]:
    """As run_python, without the seconds in which Python imports PyTorch; at exit nothing is run.

    Several `ranks` are as many processes at once, each with an environment of its own; the status
    is then the list of theirs. A process that hangs has a sentence for its status.
    """
    with tempfile.TemporaryDirectory() as folder:
        output, errors = (Path(folder) / name for name in ("output", "errors"))
        own = _process(cwd, environment)["env"]
        line = [str(cwd), words, str(output), str(errors), [own | rank for rank in ranks]]
        print(json.dumps(line), file=_server().stdin, flush=True)
        answer = _server().stdout.readline()
        assert answer, _server().communicate()
        statuses = json.loads(answer)
        status = statuses[0] if len(statuses) == 1 else statuses
        return subprocess.CompletedProcess(
            words, status, *(path.read_text(encoding="utf-8") for path in (output, errors))
        )


def run_here(patch: pytest.MonkeyPatch, folder: Path, *words: str) -> object:
    """Run a script, or `-m` and a module, in this process and in `folder`; its exit status."""
    module = words[0] == "-m"
    name, *arguments = words[1:] if module else words
    patch.chdir(folder)
    patch.setattr(sys, "argv", [name, *arguments])
    try:
        (runpy.run_module if module else runpy.run_path)(name, run_name="__main__")
    except SystemExit as end:
        return end.code
    return 0


def curve(run: Path) -> list[tuple[float, ...]]:
    """Those of a run's metrics that do not depend on the clock, step by step."""
    keys = ("step", "loss", "lr", "grad_norm", "val_loss")
    return [tuple(m.get(key, 0.0) for key in keys) for m in read_metrics(run / "metrics.jsonl")]


def loud_model(**options: Any) -> GPT:
    """A tiny model with weights so large that every token matters to the next one.

    It is in evaluation mode, without gradients; `options` as for GPTConfig.
    """
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": V, "block_size": CONTEXT}
    model = GPT(GPTConfig(**(shape | options))).eval().requires_grad_(False)
    for p in model.parameters():
        p.add_(torch.randn_like(p), alpha=0.3)
    for padded in (model.wte.weight, model.head_weight):
        padded[model.config.vocab_size :] = 0
    return model


def byte_tokenizer() -> Tokenizer:
    """One token for each byte, and <|endoftext|>: 257 in all."""
    return Tokenizer.train(["a"], 257)


def wait_for_step(process: subprocess.Popen[str], run: Path, step: int) -> None:
    """Wait until a training that goes on has logged so many steps."""
    deadline = time.monotonic() + 120
    while len(curve(run)) < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


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


def write_run(folder, data, tokenizer, block_size, *, step=7, val_loss=1.0):
    """A run folder as the tools find it, of a small model with random weights.

    Called again with another step, it adds a checkpoint.
    """
    folder.mkdir(exist_ok=True)
    tokenizer.save(folder / "tokenizer.json")
    torch.manual_seed(step)
    model = loud_model(n_layer=1, vocab_size=tokenizer.vocab_size, block_size=block_size)
    write_config(folder, settle(TrainConfig(data=str(data))), model.config)
    state = TrainerState(step=step, tokenizer_hash=tokenizer.hash, val_loss=val_loss)
    save_checkpoint(folder / "checkpoints", Checkpoint(model.state_dict(), {}, {}, state))
    return model
