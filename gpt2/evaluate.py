"""Loss, perplexity and bits per byte of a model on a text, and scores on standard tasks.

    python -m gpt2.evaluate runs/demo --data my.txt --stride 64
    python -m gpt2.evaluate runs/demo --task wikitext --data wikitext-2 --detokenise wikitext
    python -m gpt2.evaluate runs/demo --task lambada --data lambada_test.jsonl

With N tokens scored, nll the sum of -log p(token | context) in nats, and the text U bytes of UTF-8:

    loss = nll / N        perplexity = exp(loss)        bits per byte = nll / (ln 2 * U)

Perplexity is comparable only between models with one tokenizer; bits per byte between any models on
one text. Protocol: a window of the context length moves over the text in steps of `stride` tokens;
each token is scored once, in the first window that holds it, so that all but the first window's
tokens have at least context - stride tokens before them. With stride = context, the default, the
windows do not overlap. <|endoftext|>, which stands before the text and ends every document, counts
as a token and adds no bytes. The protocols of the tasks are in gpt2/word_perplexity.py and
gpt2/evaluate_tasks.py.
"""

import dataclasses
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm
from tyro.conf import Positional

from gpt2.data.batches import IGNORE
from gpt2.model import GPT
from gpt2.parallel import World, share_windows, summed

if TYPE_CHECKING:
    from gpt2.evaluate_tasks import HellaSwag, Lambada
    from gpt2.run import Run
    from gpt2.word_perplexity import WordPerplexity

Task = Literal["perplexity", "wikitext", "hellaswag", "lambada"]


class Tokens(Protocol):
    """A sequence of token ids and the bytes of its text: a `TokenStream`, or one in memory."""

    n_bytes: int

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> NDArray[np.int64]: ...


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
    stream: Tokens,
    *,
    bos_id: int,
    batch_size: int,
    stride: int | None = None,
    max_tokens: int | None = None,
    autocast: AbstractContextManager[object] | None = None,
    progress: bool = False,
    here: World | None = None,
) -> Evaluation:
    """Score a split from its beginning, all of it or about `max_tokens`, without dropout.

    Args:
        model: left in the mode (training or not) that it came in.
        stream: the tokens.
        bos_id: the id that stands before the first token.
        batch_size: windows per forward pass.
        stride: tokens from one window to the next, 1 to the context length; None is the context
            length. A window costs the same however few of its tokens it scores.
        max_tokens: stop once so many are scored; None scores the whole split.
        autocast: context for the forward passes.
        progress: show a progress bar.
        here: which of the processes that share the work this is; they all get the result. None:
            it works alone.

    Raises:
        ValueError: the split has no tokens, or the stride does not fit the context.
    """
    if not len(stream):
        raise ValueError("there is nothing to evaluate: the split has no tokens")
    context = model.config.block_size
    stride = context if stride is None else stride
    if not 1 <= stride <= context:
        raise ValueError(
            f"--stride {stride} does not fit: give 1 to {context}, the context of this model. A "
            "larger one would leave tokens out"
        )
    device = next(model.parameters()).device
    whole = max_tokens is None or max_tokens >= len(stream)
    was_training = model.training
    model.eval()
    nll, tokens = 0.0, 0
    batches = sliding_windows(
        stream, context=context, stride=stride, batch_size=batch_size, bos_id=bos_id
    )
    total = len(stream) if whole else max_tokens
    bar = tqdm(total=total, unit="tok", unit_scale=True, disable=not progress, leave=False)
    with autocast or nullcontext(), bar:
        for x, y in batches:
            count = int((y >= 0).sum())
            tokens += count
            if here is not None:
                x, y = share_windows(x, y, here)
            _, loss = model(x.to(device), y.to(device))
            assert loss is not None
            nll += loss.item() * int((y >= 0).sum())
            bar.update(count)
            if not whole and max_tokens is not None and tokens >= max_tokens:
                break
    model.train(was_training)
    if here is not None:
        nll = summed(torch.tensor(nll, dtype=torch.float64)).item()
    mean = nll / tokens
    return Evaluation(
        loss=mean,
        perplexity=math.exp(mean) if mean < 700 else math.inf,
        bits_per_byte=nll / math.log(2) / stream.n_bytes if whole else None,
        tokens=tokens,
        bytes=stream.n_bytes if whole else None,
        context=context,
        stride=stride,
    )


def sliding_windows(
    stream: Tokens, *, context: int, stride: int, batch_size: int, bos_id: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of windows, `stride` apart, in which each token of the stream is a target once.

    The stream is read as if `bos_id` stood before it, so that its first token has a context too.
    A token is a target in the first window that holds it. The last window is filled up with
    `bos_id` in x and -100 in y.

    Yields:
        x, y: (B, context), int64, on the CPU; y is x shifted by one, -100 where there is no target.
    """
    n = len(stream)
    starts = range(0, max(n - context, 0) + stride, stride)
    for first in range(0, len(starts), batch_size):
        rows = starts[first : first + batch_size]
        x = np.full((len(rows), context), bos_id, dtype=np.int64)
        y = np.full((len(rows), context), IGNORE, dtype=np.int64)
        for row, start in enumerate(rows):
            ids = stream.read(max(start - 1, 0), min(start + context, n))
            ids = ids if start else np.concatenate([[bos_id], ids])
            seen = context - stride if start else 0
            x[row, : len(ids) - 1] = ids[:-1]
            y[row, seen : len(ids) - 1] = ids[1 + seen :]
        yield torch.from_numpy(x), torch.from_numpy(y)


@dataclass(frozen=True)
class Arguments:
    """Score a run: on a text, or on HellaSwag or LAMBADA. The protocol is printed with it."""

    run: Positional[str]
    """Run folder, as `python train.py` makes it; or demo, the model that ships with this code."""
    task: Task = "perplexity"
    """perplexity: of a text, with bits per byte. wikitext: per word, of a text of tokens between
    spaces, such as WikiText. hellaswag, lambada: from --data, else from the Hugging Face hub."""
    data: str | None = None
    """Text to score: what train.py's --data takes; None: what the run was trained on. For hellaswag
    and lambada: a .jsonl or .jsonl.gz file."""
    split: str = "test"
    """train, valid or test. Of a text only."""
    stride: int | None = None
    """Tokens from one window to the next; smaller gives more context and takes longer. None: the
    context length, so that windows do not overlap. Of a text only."""
    detokenise: Literal["none", "wikitext", "ptb", "lm1b"] = "none"
    """With --task wikitext: undo this corpus's tokenisation before the model reads the text."""
    limit: int | None = None
    """Score only the first rows, or (with --task perplexity) about so many tokens."""
    checkpoint: str = "best"
    """best, last, or the number of a step."""
    batch_size: int = 16
    """Windows, endings or passages per forward pass."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    cache_dir: str = "data"
    """Where tokenised text is kept."""
    json: bool = False
    """Print one JSON object instead of sentences."""


def main(arguments: Arguments) -> None:
    import json

    from gpt2.run import load_run

    _check(arguments)
    run = load_run(arguments.run, checkpoint=arguments.checkpoint, device=arguments.device)
    what, result = _score(arguments, run)
    if arguments.json:
        about = {"task": arguments.task, "what": what, "step": run.step}
        print(json.dumps(about | dataclasses.asdict(result)))
        return
    print(f"{run.folder} step {run.step} on {what}: {result}")
    if not isinstance(result, Evaluation):  # which says its own
        print(f"protocol: {result.protocol}")


def _check(arguments: Arguments) -> None:
    """Refuse options that the task would not heed."""
    task = arguments.task
    if arguments.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {arguments.batch_size}")
    if arguments.limit is not None and arguments.limit < 1:
        raise ValueError(f"--limit must be at least 1, got {arguments.limit}")
    if arguments.limit is not None and task == "wikitext":
        raise ValueError("--task wikitext counts the words of the whole split: leave out --limit")
    if arguments.stride is not None and task not in ("perplexity", "wikitext"):
        raise ValueError(f"--task {task} has no windows that slide: leave out --stride")
    if arguments.detokenise != "none" and task != "wikitext":
        raise ValueError(f"--detokenise goes with --task wikitext, not with --task {task}")


def _score(
    arguments: Arguments, run: "Run"
) -> "tuple[str, Evaluation | WordPerplexity | HellaSwag | Lambada]":
    """What was scored, in words, and the result."""
    data, split = arguments.data or run.config.data, arguments.split
    common: dict[str, Any] = {
        "batch_size": arguments.batch_size,
        "progress": not arguments.json,
    }
    if arguments.task == "perplexity":
        from gpt2.data.prepare import prepare

        prepared = prepare(
            data,
            tokenizer=str(run.folder / "tokenizer.json"),
            cache_dir=Path(arguments.cache_dir),
        )
        if split not in prepared.splits:
            have = ", ".join(prepared.splits)
            raise ValueError(f"{prepared.name} has no split {split!r}; it has {have}")
        return f"{prepared.name}, {split}", evaluate(
            run.model,
            prepared.splits[split],
            bos_id=run.tokenizer.eot_id,
            stride=arguments.stride,
            max_tokens=arguments.limit,
            **common,
        )
    if arguments.task == "wikitext":
        from gpt2.word_perplexity import read_documents, word_perplexity

        return f"{data}, {split}", word_perplexity(
            run.model,
            run.tokenizer,
            read_documents(data, split, cache_dir=Path(arguments.cache_dir)),
            rules=arguments.detokenise,
            stride=arguments.stride,
            **common,
        )
    from gpt2.evaluate_tasks import hellaswag, lambada, read_rows

    rows = read_rows(arguments.data, arguments.task, limit=arguments.limit)
    scorer = hellaswag if arguments.task == "hellaswag" else lambada
    where = arguments.data or "the hub's copy"
    return f"{arguments.task} ({where})", scorer(run.model, run.tokenizer, rows, **common)


if __name__ == "__main__":
    from gpt2.cli import run_tool

    run_tool(main, Arguments)
