"""Continue token sequences, one token after another, with a key-value cache.

    for token in stream_tokens(model, prompts, 100, sampling=Sampling(top_p=0.9)): ...    # (B,)
    idx = generate(model, idx, 100, temperature=0)                                   # (B, T + 100)
    rows = continuations(model, [[5, 17], [8]], 100, sampling=Sampling(), stop_id=eot_id)

One forward pass reads the prompts, on a CPU one for each `PIECE` tokens; then each token is
computed from itself and the contents of the cache (gpt2/cache.py). Prompts of different lengths
share a batch. A row gets the tokens that it would get alone, and with a generator of its own also
draws the same, up to the rounding of sums in another order.

Past the context length learned positions must be used again: when `block_size` tokens are in the
context and one more comes, the older half is dropped and the newer half is encoded anew, from
position 0. That encodes one more token for each token made, where sliding by one would encode a
whole context; the model sees between half a context and a whole one. Sinusoidal positions go on.
Decoding without the cache follows the same rule, and so gives the same tokens.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from gpt2.cache import KVCache
from gpt2.common.progress import progress_bar
from gpt2.generate.sampling import Generators, Sampling, next_token
from gpt2.model import GPT

Prompts = Tensor | Sequence[Sequence[int]]
PIECE = 128  # tokens of a prompt that a CPU reads at a time: as fast, and in less memory


class Context:
    """The part of each row that the model sees: tokens and, with a cache, keys and values.

    A text that is continued in turns has one for all of them: the model reads each token once.
    """

    def __init__(self, model: GPT, rows: list[list[int]], use_cache: bool = True) -> None:
        self._model = model
        self._rows = rows
        self._device = next(model.parameters()).device
        self._cache = KVCache(model.config, len(rows)) if use_cache else None

    def extend(self, tokens: Sequence[Sequence[int]]) -> None:
        """Add tokens to each row."""
        for row, new in zip(self._rows, tokens, strict=True):
            row.extend(new)

    def occurrences(self) -> Tensor:
        """Mark the tokens that occur in each row: (B, V), bool."""
        seen = torch.zeros(len(self._rows), self._model.config.vocab_size, dtype=torch.bool)
        for own, row in zip(seen, self._rows, strict=True):
            own[row] = True
        return seen.to(self._device)

    def next_logits(self) -> Tensor:  # (B, V)
        """Run the model on the tokens that it has not read yet."""
        self._make_room()
        held = [0] * len(self._rows) if self._cache is None else self._cache.lengths
        new = [row[length:] for row, length in zip(self._rows, held, strict=True)]
        lengths = [len(tokens) for tokens in new]
        T = max(lengths)
        filled = [tokens + [0] * (T - len(tokens)) for tokens in new]
        idx, uneven = torch.tensor(filled, device=self._device), min(lengths) < T
        if self._cache is not None and self._device.type == "cpu" and not uneven:
            *before, idx = idx.split(PIECE, dim=1)
            for piece in before:
                self._model.hidden(piece, self._cache)
        return self._model.next_logits(idx, self._cache, lengths if uneven else None)

    def _make_room(self) -> None:
        """Drop the older half of each context that is full, and encode the newer half anew."""
        config = self._model.config
        if config.positions != "learned":
            return
        full = [b for b, row in enumerate(self._rows) if len(row) > config.block_size]
        kept = config.block_size // 2
        for b in full:
            del self._rows[b][: -(kept + 1)]
        if full and self._cache is not None:
            anew = KVCache(config, len(full))
            if kept:
                idx = torch.tensor([self._rows[b][:-1] for b in full], device=self._device)
                self._model.hidden(idx, anew)
            self._cache.replace(full, anew)


def check_prompts(model: GPT, prompts: Prompts) -> None:
    """Raise ValueError, with the remedy, if the model cannot continue these prompts."""
    if len(prompts) == 0:
        raise ValueError("there is no prompt: give at least one")
    if min(len(prompt) for prompt in prompts) == 0:
        raise ValueError(
            "the prompt is empty: start from at least one token, such as <|endoftext|>"
        )
    longest, context = max(len(prompt) for prompt in prompts), model.config.block_size
    if model.config.positions == "learned" and longest > context:
        raise ValueError(
            f"the prompt has {longest} tokens and the model's context {context}: "
            f"shorten it to its last {context} tokens or fewer"
        )


@torch.no_grad()
def stream_tokens(
    model: GPT,
    idx: Prompts | Context,
    max_new_tokens: int,
    *,
    sampling: Sampling,
    generator: Generators = None,
    use_cache: bool = True,
) -> Iterator[Tensor]:
    """Yield the next token of each row, `max_new_tokens` times.

    Args:
        model: in evaluation mode.
        idx: prompts (B, T), int64, T >= 1; or B lists of ids, which may differ in length; or a
            context, which takes in the tokens and can be continued again.
        max_new_tokens: how many tokens to add.
        sampling: how each token is chosen. A repetition penalty applies to all tokens of the prompt
            and the continuation, also to those that have left the context.
        generator: source of randomness on the model's device, one for all rows or one for each;
            None takes PyTorch's own.
        use_cache: keep keys and values; without it every token costs a pass over the context.

    Yields:
        ids (B,), int64.

    Raises:
        ValueError: an empty prompt, or one longer than learned positions reach.
    """
    if isinstance(idx, Context):
        context = idx
    else:
        check_prompts(model, idx)
        rows = idx.tolist() if isinstance(idx, Tensor) else [list(row) for row in idx]
        context = Context(model, rows, use_cache)
    seen = None if sampling.repetition_penalty == 1 else context.occurrences()
    for _ in range(max_new_tokens):
        token = next_token(context.next_logits(), sampling, generator, seen)
        if seen is not None:
            seen.scatter_(1, token[:, None], True)
        context.extend(token[:, None].tolist())
        yield token


def generate(
    model: GPT,
    idx: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    generator: Generators = None,
    stop_id: int | None = None,
    use_cache: bool = True,
) -> Tensor:
    """Continue prompts of one length: idx (B, T) -> (B, T + n), n <= max_new_tokens.

    It ends early when every row has produced `stop_id`; rows that ended before are padded with it.
    See `Sampling` and `stream_tokens` for the other arguments.
    """
    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
    )
    tokens = stream_tokens(
        model, idx, max_new_tokens, sampling=sampling, generator=generator, use_cache=use_cache
    )
    return torch.cat([idx, *(token[:, None] for token in _until_all_ended(tokens, stop_id))], dim=1)


def continuations(
    model: GPT,
    prompts: Prompts,
    max_new_tokens: int,
    *,
    sampling: Sampling,
    generator: Generators = None,
    stop_id: int | None = None,
    use_cache: bool = True,
    progress: bool = False,
) -> list[list[int]]:
    """Continue prompts of any lengths: the new tokens of each, up to and without `stop_id`.

    See `stream_tokens` for the arguments; `progress` shows a bar.
    """
    tokens = stream_tokens(
        model, prompts, max_new_tokens, sampling=sampling, generator=generator, use_cache=use_cache
    )
    shown = progress_bar(progress, tokens, total=max_new_tokens, unit="tok", leave=False)
    columns = [token.tolist() for token in _until_all_ended(shown, stop_id)]
    return [list(until((c[b] for c in columns), stop_id)) for b in range(len(prompts))]


def _until_all_ended(tokens: Iterable[Tensor], stop_id: int | None) -> Iterator[Tensor]:
    """Pass on tokens (B,), with `stop_id` in rows that have ended, until all rows have."""
    ended: Tensor | None = None
    for token in tokens:
        if stop_id is not None:
            if ended is not None:
                token = token.masked_fill(ended, stop_id)
            ended = token == stop_id
        yield token
        if ended is not None and bool(ended.all()):
            return


def until(ids: Iterable[int], stop_id: int | None) -> Iterator[int]:
    """Pass on the ids before the first `stop_id`."""
    for i in ids:
        if i == stop_id:
            return
        yield i
