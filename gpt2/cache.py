"""A key-value cache, so that the next token costs one token.

    cache = KVCache(model.config, batch_size=len(prompt))
    logits = model.next_logits(prompt, cache)             # (B, T), all of it in one pass
    logits = model.next_logits(token[:, None], cache)     # (B, 1), sees all that went before

As no position sees a later one, the keys and values of a position never change. Each row counts its
positions from its own first token, so that rows of different lengths share a batch: a shorter row
ends earlier, and what lies beyond its end is never seen.

Memory: 2 L C numbers for each position and row, with room for a multiple of 128 positions. When it
is full it is copied, in a fraction of the time in which the next 128 tokens read it. A window does
not bound it: older keys are kept, and not read.

Axes: B batch, T new positions, S positions held, H heads, D head width, L layers, C channels.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2.config import GPTConfig

STEP = 128  # positions


class KVCache:
    """The keys and values of all layers, for the tokens that a model has read.

    Attributes:
        window: the window of the model's attention; None for no window.
        end_of_text: the token at which a document begins, in a model that attends within documents.
        lengths: the number of tokens held, for each row.
        begins: where the document of each position begins, (B, room) int64; None before the first.
        kv: keys and values (B, room, 2, H, D), for each attention module.
    """

    def __init__(self, config: GPTConfig, batch_size: int) -> None:
        self.window = config.window
        self.end_of_text = config.end_of_text
        self.lengths = [0] * batch_size
        self.begins: Tensor | None = None
        self.kv: dict[nn.Module, Tensor] = {}

    def extend(self, idx: Tensor) -> "Chunk":
        """Make place for the tokens idx (B, T), at the beginning of a forward pass."""
        chunk = Chunk(self, idx)
        self.lengths = [length + idx.shape[1] for length in self.lengths]
        return chunk

    def find_begins(self, idx: Tensor, positions: Tensor) -> Tensor:
        """Keep and return where the documents of these new tokens begin, (B, T) int64."""
        assert self.end_of_text is not None
        end, starts = max(self.lengths) + idx.shape[1], positions[:, :1]
        if self.begins is None or self.begins.shape[1] < end:
            held = positions.new_zeros(len(idx), 0) if self.begins is None else self.begins
            self.begins = F.pad(held, (0, _room(end) - held.shape[1]))
        before = self.begins.gather(1, (starts - 1).clamp(min=0))
        begins = torch.where(idx.eq(self.end_of_text), positions, before * (starts > 0))
        begins = begins.cummax(1).values
        self.begins.scatter_(1, positions, begins)
        return begins

    def forget(self, counts: Sequence[int]) -> None:
        """Forget the last `counts[b]` tokens of each row b."""
        self.lengths = [n - count for n, count in zip(self.lengths, counts, strict=True)]
        assert min(self.lengths) >= 0

    def replace(self, rows: Sequence[int], other: "KVCache") -> None:
        """Replace the contents of `rows` by the rows of `other`, which hold no more tokens."""
        end = max(other.lengths)
        if self.begins is not None and other.begins is not None:
            self.begins[rows, :end] = other.begins[:, :end]
        for attention, kv in other.kv.items():
            self.kv[attention][rows, :end] = kv[:, :end]
        for row, length in zip(rows, other.lengths, strict=True):
            self.lengths[row] = length


class Chunk:
    """T tokens of each row that follow those in a cache, on their way through the layers.

    Attributes:
        positions: of the tokens: a slice if all rows agree, otherwise (B, T), int64.
        end: the position after the last one.
        follows: whether tokens went before, in any row.
        last: whether these are the last of all positions in each row, and nothing but the window
            hides an earlier one.
        begins: where their documents begin, (B, T) int64; None if the model sees through documents.
    """

    def __init__(self, cache: KVCache, idx: Tensor) -> None:
        T, device = idx.shape[1], idx.device
        self._cache = cache
        starts = cache.lengths
        self.follows = any(starts)
        self.end = max(starts) + T
        self._seen = slice(self.end)
        self._mask: Tensor | None = None
        self._rows: slice | Tensor = slice(None)
        self.positions: slice | Tensor = slice(starts[0], self.end)
        self.begins: Tensor | None = None
        together = min(starts) == max(starts)
        self.last = together and cache.end_of_text is None
        if together and T == 1 and cache.end_of_text is None:
            if cache.window is not None:  # a slice does what a mask would
                self._seen = slice(max(0, self.end - cache.window), self.end)
            return
        each = torch.tensor(starts, device=device)[:, None] + torch.arange(T, device=device)
        if not together:
            self._rows, self.positions = torch.arange(len(starts), device=device)[:, None], each
        if cache.end_of_text is not None:
            self.begins = cache.find_begins(idx, each)
        if self.follows:
            self._mask = _visible(each, self.end, cache.window, self.begins)

    def append(self, attention: nn.Module, kv: Tensor) -> tuple[Tensor, Tensor | None] | None:
        """Store the keys and values (B, T, 2, H, D) of these tokens for one attention module.

        Returns:
            None if no token went before these: they see only one another. Otherwise the keys and
            values (B, S, 2, H, D) that they attend to, and a mask (B, 1, T, S), True where a query
            may see a key; no mask (None) if every query sees all.
        """
        held = self._cache.kv.get(attention)
        if held is None or held.shape[1] < self.end:
            held = self._cache.kv[attention] = _with_room(held, kv, _room(self.end))
        held[self._rows, self.positions] = kv
        return (held[:, self._seen], self._mask) if self.follows else None

    def reserve(self, attention: nn.Module) -> tuple[Tensor, Tensor | None]:
        """Make place for one token, which follows others.

        Returns:
            keys and values (B, S, 2, H, D), of which the last are to be written, and the mask, as
            `append` gives them.
        """
        held = self._cache.kv[attention]
        if held.shape[1] <= self.end:  # full, its strides are a special case, compiled once more
            held = self._cache.kv[attention] = _with_room(held, held, _room(self.end + 1))
        return held[:, self._seen], self._mask


def _visible(positions: Tensor, end: int, window: int | None, begins: Tensor | None) -> Tensor:
    """Boolean (B, 1, T, end): True where the query at `positions` (B, T) may see a key."""
    keys = torch.arange(end, device=positions.device)
    distance = positions[:, None, :, None] - keys
    visible = (distance >= 0) & (distance < (window or end))
    return visible if begins is None else visible & (keys >= begins[:, None, :, None])


def _room(end: int) -> int:
    """How many positions to have room for when `end` are held."""
    return math.ceil(end / STEP) * STEP


def _with_room(held: Tensor | None, kv: Tensor, room: int) -> Tensor:
    """A buffer of kv's shape but for `room` positions, which begins with the contents of `held`.

    The rest is zero, as attention weights of zero would not hide a NaN. In memory the positions of
    a head follow one another, so that attention reads them in one stream.
    """
    B, _, _, H, D = kv.shape
    buffer = kv.new_zeros(B, 2, H, room, D).permute(0, 3, 1, 2, 4)
    if held is not None:
        buffer[:, : held.shape[1]] = held
    return buffer
