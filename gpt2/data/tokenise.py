"""A source's text to shards of token ids: one pass, bounded memory, resumable, divisible.

The pieces of a split go into its shards in the order in which the source gives them; a shard is
full with `shard_bytes` of text. Where shards begin and end thus depends on the text alone, so each
can be made without the others. A shard that is already there, or that another process makes, is
read past, which costs no tokenising; and a run that was killed, or n processes that share the
shards, end with the very files that one undisturbed process writes.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from gpt2.data.documents import Piece, Source
from gpt2.data.shards import ShardError, ShardInfo, id_dtype, shard_name, verify_shard, write_shard
from gpt2.data.splits import SplitPlan, split_pieces
from gpt2.tokenizer import Tokenizer

_BATCH_CHARS = 1 << 22  # text handed to the tokenizer at once: work for every core


@dataclass(frozen=True)
class Part:
    """A share of the work: number 1 to `of`."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def takes(self, shard: int) -> bool:
        """Whether it makes this shard: the parts take turns."""
        return shard % self.of == self.number - 1


WHOLE = Part(1, 1)


@dataclass(frozen=True)
class SplitShards:
    """The shards of a split, after a pass over its text.

    Attributes:
        made: those of this part, by number.
        shards, pieces, documents, text_bytes: how many the split has, of all parts.
    """

    made: dict[int, ShardInfo]
    shards: int
    pieces: int
    documents: int
    text_bytes: int


def write_splits(
    source: Source,
    plan: SplitPlan,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    part: Part,
    shard_bytes: int,
    progress: bool,
) -> dict[str, SplitShards]:
    """Write the shards of `part` in `folder`: SPLIT-00000.bin, SPLIT-00001.bin, ... of each split.

    Whole shards that are already there are kept. Memory holds one batch of text and, per split, the
    ids of the shard at work.

    Raises:
        ValueError: a split gets no text; or, as `ShardError`, a shard that is there holds other
            text than belongs in it.
    """
    order = itertools.count()

    def begin(split: str, number: int) -> _Shard:
        path = folder / shard_name(split, number)
        return _Shard(path, tokenizer, ours=part.takes(next(order)))

    splits = dict.fromkeys([*source.splits, *plan.taken])
    writers = {split: _SplitWriter(split, begin, shard_bytes) for split in splits}
    total = sum(source.sizes.values()) or None
    with tqdm(
        total=total,
        desc=f"tokenising {source.name}" + (f", part {part}" if part != WHOLE else ""),
        unit="B",
        unit_scale=True,
        disable=not progress,
    ) as bar:
        for batch in _batches(split_pieces(source, plan)):
            places = [writers[split].place(piece) for split, piece in batch]
            fresh = [
                (shard, piece)
                for shard, (_, piece) in zip(places, batch, strict=True)
                if shard.wanted
            ]
            texts = [piece.text for _, piece in fresh]
            for (shard, piece), ids in zip(fresh, tokenizer.encode_documents(texts), strict=True):
                shard.add(ids, last=piece.last)
            for writer in writers.values():
                writer.close_full()
            bar.update(sum(piece.consumed for _, piece in batch))
        if total:
            bar.update(total - bar.n)  # bytes after the last document: blank lines, a gzip trailer
    for split, writer in writers.items():
        writer.close_last()
        if not writer.shards:
            raise ValueError(
                f"{source.name} is too short: nothing is left for the {split} split. Give more "
                f"text, or a file named for it, such as {split}.txt beside train.txt"
            )
    return {split: writer.result() for split, writer in writers.items()}


def _batches(pieces: Iterator[tuple[str, Piece]]) -> Iterator[list[tuple[str, Piece]]]:
    batch: list[tuple[str, Piece]] = []
    size = 0
    for split, piece in pieces:
        batch.append((split, piece))
        size += len(piece.text)
        if size >= _BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Shard:
    """A shard while its pieces go by: counted always, their ids collected where it is wanted.

    Attributes:
        wanted: whether it is to be written: it is ours, and not there yet.
        pieces, documents, text_bytes: those that went by.
    """

    def __init__(self, path: Path, tokenizer: Tokenizer, *, ours: bool) -> None:
        self._path, self._tokenizer = path, tokenizer
        self._kept = _whole_shard(path, tokenizer) if ours else None
        self.wanted = ours and self._kept is None
        self.pieces = self.documents = self.text_bytes = 0
        self._ids: list[NDArray[np.unsignedinteger]] = []

    def count(self, piece: Piece) -> None:
        self.pieces += 1
        self.documents += piece.last
        self.text_bytes += len(piece.text.encode("utf-8"))

    def add(self, ids: NDArray[Any], *, last: bool) -> None:
        """Take the ids of a piece; a document's last is followed by the end-of-text id."""
        dtype = id_dtype(self._tokenizer.vocab_size)
        self._ids.append(np.asarray(ids, dtype=dtype))
        if last:
            self._ids.append(np.array([self._tokenizer.eot_id], dtype=dtype))

    def close(self) -> ShardInfo | None:
        """Write it, where it is wanted. None: another part makes it."""
        if self.wanted:
            return write_shard(
                self._path,
                [np.concatenate(self._ids)],
                vocab_size=self._tokenizer.vocab_size,
                tokenizer_hash=self._tokenizer.hash,
                documents=self.documents,
                text_bytes=self.text_bytes,
                pieces=self.pieces,
            )
        kept = self._kept
        counted = (self.pieces, self.documents, self.text_bytes)
        if kept and (kept.pieces, kept.documents, kept.text_bytes) != counted:
            raise ShardError(
                f"token shard {self._path} of an interrupted preparation holds other text than "
                "belongs in it: another version of this program cut the text otherwise. Delete the "
                f"folder {self._path.parent} and run again."
            )
        return kept


def _whole_shard(path: Path, tokenizer: Tokenizer) -> ShardInfo | None:
    """What an earlier, interrupted run left, if it is sound."""
    if not path.exists():
        return None
    try:
        info = verify_shard(path)
    except ShardError:
        return None
    return info if info.tokenizer_hash == tokenizer.hash else None


class _SplitWriter:
    """Leads the pieces of one split into its shards."""

    def __init__(self, split: str, begin: Callable[[str, int], _Shard], shard_bytes: int) -> None:
        self._split, self._begin, self._shard_bytes = split, begin, shard_bytes
        self._open: deque[_Shard] = deque()  # the last is the one at work
        self._made: dict[int, ShardInfo] = {}
        self._pieces = self._documents = self._text_bytes = 0
        self.shards = 0

    def place(self, piece: Piece) -> _Shard:
        """The shard that a piece belongs in. Call it once for each piece, in order."""
        if not self._open or self._is_full(self._open[-1]):
            self._open.append(self._begin(self._split, self.shards + len(self._open)))
        self._open[-1].count(piece)
        return self._open[-1]

    def close_full(self) -> None:
        """Write the shards that all pieces have been added to."""
        while self._open and self._is_full(self._open[0]):
            self._close()

    def close_last(self) -> None:
        """Write what is left, if it is anything."""
        while self._open:
            self._close()

    def result(self) -> SplitShards:
        return SplitShards(self._made, self.shards, self._pieces, self._documents, self._text_bytes)

    def _is_full(self, shard: _Shard) -> bool:
        return shard.text_bytes >= self._shard_bytes

    def _close(self) -> None:
        shard = self._open.popleft()
        info = shard.close()
        if info is not None:
            self._made[self.shards] = info
        self.shards += 1
        self._pieces += shard.pieces
        self._documents += shard.documents
        self._text_bytes += shard.text_bytes
