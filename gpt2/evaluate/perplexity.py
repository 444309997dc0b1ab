"""Loss, perplexity and bits per byte of a model on a stream of tokens.

With N tokens scored, nll the sum of -log p(token | context) in nats, and the text U bytes of UTF-8:

    loss = nll / N        perplexity = exp(loss)        bits per byte = nll / (ln 2 * U)

A window of the context length moves over the text in steps of `stride` tokens. Each token is scored
once, in the first window that holds it, so that all but the first window's tokens have at least
context - stride tokens before them.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpt2.common.distributed import World, all_reduce
from gpt2.common.progress import progress_bar
from gpt2.data.batches import IGNORE
from gpt2.model import GPT


def to_perplexity(mean: float) -> float:
    """Compute exp(mean) for a mean -log p; infinity where it is too large for a float."""
    return math.exp(mean) if mean < 700 else math.inf


def shard_windows(x: Tensor, y: Tensor, here: World) -> tuple[Tensor, Tensor]:
    """Select this process's windows of a batch (B, T) to score.

    Every process must run a sharded model as often as the others: a process without a window of its
    own gets one without targets.
    """
    own_x, own_y = x[here.rank :: here.size], y[here.rank :: here.size]
    if not len(own_x):
        own_x, own_y = x[:1], torch.full_like(y[:1], IGNORE)
    return own_x, own_y


class Tokens(Protocol):
    """A sequence of token ids, and the size of its text in bytes: a `TokenStream`, for example."""

    n_bytes: int

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> NDArray[np.int64]: ...


@dataclass(frozen=True)
class Evaluation:
    """Scores in nats per token, and their protocol; no bytes when only a part was scored."""

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
        bos_id: the id that stands before the first token.
        stride: tokens from one window to the next, 1 to the context length; None is the context
            length. A window costs the same however few of its tokens it scores.
        max_tokens: stop once so many are scored; None scores the whole split.
        autocast: context for the forward passes.
        here: this process among those that share the work, which all get the result; None for one
            process alone.

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
    whole = max_tokens is None or max_tokens >= len(stream)
    total = len(stream) if whole else max_tokens
    windows = sliding_windows(
        stream, context=context, stride=stride, batch_size=batch_size, bos_id=bos_id
    )
    was_training = model.training
    model.eval()
    bar = progress_bar(progress, total=total, unit="tok", unit_scale=True, leave=False)
    with autocast or nullcontext(), bar:
        nll, tokens = _score(model, windows, here, total, bar)
    model.train(was_training)
    mean = nll / tokens
    return Evaluation(
        loss=mean,
        perplexity=to_perplexity(mean),
        bits_per_byte=nll / math.log(2) / stream.n_bytes if whole else None,
        tokens=tokens,
        bytes=stream.n_bytes if whole else None,
        context=context,
        stride=stride,
    )


def _score(
    model: GPT,
    windows: Iterable[tuple[Tensor, Tensor]],
    here: World | None,
    enough: int | None,
    bar: Any,
) -> tuple[float, int]:
    """The nll of all targets, and their number, until `enough` are scored."""
    device = next(model.parameters()).device
    nll, tokens = 0.0, 0
    for x, y in windows:
        count = int((y >= 0).sum())
        tokens += count
        if here is not None:
            x, y = shard_windows(x, y, here)
        _, loss = model(x.to(device), y.to(device))
        assert loss is not None
        nll += loss.item() * int((y >= 0).sum())
        bar.update(count)
        if enough is not None and tokens >= enough:
            break
    if here is not None:
        nll = all_reduce(torch.tensor(nll, dtype=torch.float64)).item()
    return nll, tokens


def sliding_windows(
    stream: Tokens, *, context: int, stride: int, batch_size: int, bos_id: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut the stream into batches of windows, `stride` apart, with each token as a target once.

    `bos_id` stands before the stream, so that its first token has a context too. A token is a
    target in the first window that holds it. The last window is padded with `bos_id` in x and -100
    in y.

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
