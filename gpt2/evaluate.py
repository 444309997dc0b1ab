"""Loss, perplexity and bits per byte of a model on a text.

    python -m gpt2.evaluate runs/demo --data my.txt

With N tokens scored, nll the sum of -log p(token | context) in nats, and the text U bytes of UTF-8:

    loss = nll / N        perplexity = exp(loss)        bits per byte = nll / (ln 2 * U)

Perplexity is comparable only between models with one tokenizer; bits per byte between any models on
one text. Protocol: the text is cut into windows of the context length, one after another; each
token is scored once, within its window (stride = context). <|endoftext|>, which stands before the
text and ends every document, counts as a token and adds no bytes.
"""

import dataclasses
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from tqdm import tqdm
from tyro.conf import Positional

from gpt2.data.batches import evaluation_batches
from gpt2.data.shards import TokenStream
from gpt2.model import GPT


@dataclass(frozen=True)
class Evaluation:
    """What was measured, and how. `bits_per_byte` is None when only a part was scored."""

    loss: float
    perplexity: float
    bits_per_byte: float | None
    tokens: int
    bytes: int | None
    context: int
    stride: int

    def __str__(self) -> str:
        bpb = f", {self.bits_per_byte:.4f} bits per byte" if self.bits_per_byte is not None else ""
        size = f" = {self.bytes:,} bytes" if self.bytes is not None else ""
        return (
            f"loss {self.loss:.4f} nats per token, perplexity {self.perplexity:.2f}{bpb} "
            f"({self.tokens:,} tokens{size} scored once each, context {self.context}, "
            f"stride {self.stride})"
        )


@torch.no_grad()
def evaluate(
    model: GPT,
    stream: TokenStream,
    *,
    bos_id: int,
    batch_size: int,
    max_tokens: int | None = None,
    autocast: AbstractContextManager[object] | None = None,
    progress: bool = False,
) -> Evaluation:
    """Score a split from its beginning, all of it or about `max_tokens`, without dropout.

    Args:
        model: left in the mode (training or not) that it came in.
        stream: the tokens.
        bos_id: the id that stands before the first token.
        batch_size: windows per forward pass.
        max_tokens: stop once so many are scored; None scores the whole split.
        autocast: context for the forward passes.
        progress: show a progress bar.

    Raises:
        ValueError: the split has no tokens.
    """
    if not len(stream):
        raise ValueError("there is nothing to evaluate: the split has no tokens")
    context = model.config.block_size
    device = next(model.parameters()).device
    whole = max_tokens is None or max_tokens >= len(stream)
    was_training = model.training
    model.eval()
    nll, tokens = 0.0, 0
    batches = evaluation_batches(stream, seq_len=context, batch_size=batch_size, bos_id=bos_id)
    bar = tqdm(total=len(stream), unit="tok", unit_scale=True, disable=not progress, leave=False)
    with autocast or nullcontext(), bar:
        for x, y in batches:
            _, loss = model(x.to(device), y.to(device))
            assert loss is not None
            count = int((y >= 0).sum())
            nll += loss.item() * count
            tokens += count
            bar.update(count)
            if not whole and max_tokens is not None and tokens >= max_tokens:
                break
    model.train(was_training)
    mean = nll / tokens
    return Evaluation(
        loss=mean,
        perplexity=math.exp(mean) if mean < 700 else math.inf,
        bits_per_byte=nll / math.log(2) / stream.n_bytes if whole else None,
        tokens=tokens,
        bytes=stream.n_bytes if whole else None,
        context=context,
        stride=context,
    )


@dataclass(frozen=True)
class Arguments:
    """Loss, perplexity and bits per byte of a run on a text."""

    run: Positional[str]
    """Run folder, as `python train.py` makes it."""
    data: str | None = None
    """Text to score: what train.py's --data takes. None: what the run was trained on."""
    split: str = "test"
    """train, valid or test."""
    checkpoint: str = "best"
    """best, last, or the number of a step."""
    batch_size: int = 16
    """Windows per forward pass."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    cache_dir: str = "data"
    """Where tokenised text is kept."""
    json: bool = False
    """Print one JSON object instead of a sentence."""


def main(arguments: Arguments) -> None:
    import json
    from pathlib import Path

    from gpt2.data.prepare import prepare
    from gpt2.run import load_run

    run = load_run(arguments.run, checkpoint=arguments.checkpoint, device=arguments.device)
    prepared = prepare(
        arguments.data or run.config.data,
        tokenizer=str(run.folder / "tokenizer.json"),
        cache_dir=Path(arguments.cache_dir),
    )
    if arguments.split not in prepared.splits:
        have = ", ".join(prepared.splits)
        raise ValueError(f"{prepared.name} has no split {arguments.split!r}; it has {have}")
    result = evaluate(
        run.model,
        prepared.splits[arguments.split],
        bos_id=run.tokenizer.eot_id,
        batch_size=arguments.batch_size,
        progress=not arguments.json,
    )
    if arguments.json:
        print(json.dumps({"split": arguments.split} | dataclasses.asdict(result)))
    else:
        print(f"{run.folder} step {run.step} on {prepared.name}, {arguments.split}: {result}")


if __name__ == "__main__":
    from gpt2.cli import run_tool

    run_tool(main, Arguments)
