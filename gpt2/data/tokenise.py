"""Turn a source's text into shards of token ids: one pass, bounded memory, resumable, divisible.

The pieces of a split go into its shards in the order of the source; a shard is full with
`shard_bytes` of text. So the text alone decides where shards begin and end, and each shard can be
made without the others. A shard that exists already, or that another process makes, is read past,
which costs no tokenising. A run that was killed, or n processes that share the shards, end with
the very files that one undisturbed process writes.
"""

import itertools
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from gpt2.data.documents import Piece
from gpt2.data.job import WHOLE, Job, Part
from gpt2.data.shards import (
    NO_TEXT,
    Counts,
    ShardError,
    ShardInfo,
    id_dtype,
    shard_name,
    verify_shard,
    write_shard,
)
from gpt2.data.splits import SplitPlan, split_pieces
from gpt2.tokenizer import Tokenizer
from gpt2.tokenizer.pretokens import in_batches

_BATCH_CHARS = 1 << 22  # text handed to the tokenizer at once: work for every core


@dataclass(frozen=True)
class SplitShards:
    """The shards of a split, after a pass over its text.

    Attributes:
        made: the shards of this part, by number.
        counts: the whole split, all parts together.
    """

    made: dict[int, ShardInfo]
    counts: Counts


def write_splits(
    job: Job, plan: SplitPlan, tokenizer: Tokenizer, folder: Path, part: Part
) -> dict[str, SplitShards]:
    """Write the shards of `part` in `folder`: SPLIT-00000.bin, SPLIT-00001.bin, ... of each split.

    Whole shards that exist already are kept. Memory holds one batch of text and, for each split,
    the ids of the shard in progress.

    Raises:
        ValueError: a split gets no text; or, as `ShardError`, an existing shard holds other text
            than belongs in it.
    """
    source, order = job.source, itertools.count()
    start = time.perf_counter()

    def begin(split: str, number: int) -> _Shard:
        path = folder / shard_name(split, number)
        return _Shard(path, tokenizer, job.shard_bytes, ours=part.takes(next(order)))

    splits = dict.fromkeys([*source.splits, *plan.taken])
    writers = {split: _SplitWriter(split, begin) for split in splits}
    total = sum(source.sizes.values()) or None
    with tqdm(
        total=total,
        desc=f"tokenising {source.name}" + (f", part {part}" if part != WHOLE else ""),
        unit="B",
        unit_scale=True,
        disable=not job.progress,
    ) as bar:
        pieces = split_pieces(source, plan)
        for batch in in_batches(pieces, _BATCH_CHARS, lambda item: len(item[1].text)):
            placed = [(writers[split].place(piece), piece) for split, piece in batch]
            fresh = [(shard, piece) for shard, piece in placed if shard.wanted]
            texts = [piece.text for _, piece in fresh]
            for (shard, piece), ids in zip(fresh, tokenizer.encode_documents(texts), strict=True):
                shard.add(ids, last=piece.last)
            for writer in writers.values():
                writer.close_full()
            bar.update(sum(piece.consumed for _, piece in batch))
        if total:
            bar.update(total - bar.n)  # bytes after the last document: blank lines, a gzip trailer
    made = {split: writer.finish(source.name) for split, writer in writers.items()}
    job.notes.append(f"tokenised into {folder} in {time.perf_counter() - start:.1f} s")
    return made


class _Shard:
    """A shard while its pieces pass: always counted, its ids collected where it is wanted.

    Attributes:
        wanted: whether to write it: it is of this part, and does not exist yet.
        counts: the text that passed so far.
    """

    def __init__(self, path: Path, tokenizer: Tokenizer, size: int, *, ours: bool) -> None:
        self._path, self._tokenizer, self._size = path, tokenizer, size
        self._kept = _whole_shard(path, tokenizer) if ours else None
        self.wanted = ours and self._kept is None
        self.counts = Counts(1, 0, 0, 0)
        self._ids: list[NDArray[np.unsignedinteger]] = []

    @property
    def is_full(self) -> bool:
        return self.counts.text_bytes >= self._size

    def count(self, piece: Piece) -> None:
        self.counts += Counts(0, 1, int(piece.last), len(piece.text.encode("utf-8")))

    def add(self, ids: NDArray[Any], *, last: bool) -> None:
        """Take the ids of a piece, and close a document after its last by the end-of-text id."""
        dtype = id_dtype(self._tokenizer.vocab_size)
        self._ids.append(np.asarray(ids, dtype=dtype))
        if last:
            self._ids.append(np.array([self._tokenizer.eot_id], dtype=dtype))

    def close(self) -> ShardInfo | None:
        """Write the shard if it is wanted. Returns None if another part makes it."""
        if self.wanted:
            return write_shard(
                self._path,
                np.concatenate(self._ids),
                vocab_size=self._tokenizer.vocab_size,
                tokenizer_hash=self._tokenizer.hash,
                counts=self.counts,
            )
        if self._kept and self._kept.counts != self.counts:
            raise ShardError(
                f"token shard {self._path} of an interrupted preparation holds other text than "
                "belongs in it: another version of this program cut the text otherwise. Delete the "
                f"folder {self._path.parent} and run again."
            )
        return self._kept


def _whole_shard(path: Path, tokenizer: Tokenizer) -> ShardInfo | None:
    """The shard that an interrupted run left, if it is sound."""
    if not path.exists():
        return None
    try:
        info = verify_shard(path)
    except ShardError:
        return None
    return info if info.tokenizer_hash == tokenizer.hash else None


class _SplitWriter:
    """Puts the pieces of one split into its shards."""

    def __init__(self, split: str, begin: Callable[[str, int], _Shard]) -> None:
        self._split, self._begin = split, begin
        self._open: deque[_Shard] = deque()  # pieces go into the last one
        self._made: dict[int, ShardInfo] = {}
        self._closed = NO_TEXT

    def place(self, piece: Piece) -> _Shard:
        """The shard that a piece belongs in. Call it once for each piece, in order."""
        if not self._open or self._open[-1].is_full:
            self._open.append(self._begin(self._split, self._closed.shards + len(self._open)))
        self._open[-1].count(piece)
        return self._open[-1]

    def close_full(self) -> None:
        """Write the shards that have all their pieces."""
        while self._open and self._open[0].is_full:
            self._close()

    def finish(self, name: str) -> SplitShards:
        """Write what is left of the source `name`; a ValueError says that there was no text."""
        while self._open:
            self._close()
        if not self._closed.shards:
            raise ValueError(
                f"{name} is too short: nothing is left for the {self._split} split. Give more "
                f"text, or a file named for it, such as {self._split}.txt beside train.txt"
            )
        return SplitShards(self._made, self._closed)

    def _close(self) -> None:
        shard = self._open.popleft()
        info = shard.close()
        if info is not None:
            self._made[self._closed.shards] = info
        self._closed += shard.counts
