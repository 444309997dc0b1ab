"""Turn a source's text into shards of token ids: one pass, bounded memory, resumable.

The pieces of a split go into its shards in the order of the source; a shard is full with
`shard_bytes` of text. So the text alone decides where shards begin and end, and each shard can be
made without the others. A shard that exists already is read past, which costs no tokenising. A
run that was killed ends with the very files that one undisturbed run writes.
"""

import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpt2.common.progress import progress_bar
from gpt2.data.documents import EncodedPiece, Piece
from gpt2.data.job import Job
from gpt2.data.shards import (
    NO_TEXT,
    Counts,
    ShardError,
    ShardInfo,
    id_dtype,
    shard_error,
    shard_name,
    verify_shard,
    write_shard,
)
from gpt2.data.splits import SplitPlan, split_pieces
from gpt2.tokenizer import Tokenizer

BATCH_CHARS = 1 << 22  # text handed to the tokenizer at once: work for every core


@dataclass
class SplitShards:
    """The shards of a split, after a pass over its text."""

    made: list[ShardInfo]  # in order
    counts: Counts  # of the whole split


def write_splits(
    job: Job, plan: SplitPlan, tokenizer: Tokenizer, folder: Path
) -> dict[str, SplitShards]:
    """Write shards in `folder`: SPLIT-00000.bin, SPLIT-00001.bin, ... of each split.

    Whole shards that exist already are kept. For each split, memory holds one batch of text and
    the ids of the shard in progress.

    Raises:
        ValueError: a split gets no text; or, as `ShardError`, an existing shard holds other text
            than belongs in it.
    """
    source = job.source
    start = time.perf_counter()
    splits = {split: SplitShards([], NO_TEXT) for split in (*source.splits, *plan.taken)}
    unfinished: dict[str, _Shard] = {}

    def close(split: str) -> None:
        shard, done = unfinished.pop(split), splits[split]
        done.made.append(shard.close())
        done.counts += shard.counts

    total = sum(source.sizes.values()) or None
    with (
        ThreadPoolExecutor(1) as worker,
        progress_bar(
            job.progress,
            total=total,
            desc=f"tokenising {source.name}",
            unit="B",
            unit_scale=True,
        ) as bar,
    ):
        for split, piece in split_pieces(source, plan):
            if split not in unfinished:
                path = folder / shard_name(split, splits[split].counts.shards)
                unfinished[split] = _Shard(path, tokenizer, worker)
            if isinstance(piece, EncodedPiece):
                ids: NDArray[np.integer] | None = piece.ids
            else:
                ids = next(job.encoded, None) if split == "train" else None
            unfinished[split].add(piece, ids)
            if unfinished[split].counts.text_bytes >= job.shard_bytes:
                close(split)
            bar.update(piece.consumed)
        for split in list(unfinished):
            close(split)
        if total:
            bar.update(total - bar.n)  # bytes after the last document: blank lines, a gzip trailer
    for split, shards in splits.items():
        if not shards.counts.shards:
            raise ValueError(
                f"{source.name} is too short: nothing is left for the {split} split. Give more "
                f"text, or a file named for it, such as {split}.txt beside train.txt"
            )
    job.notes.append(f"tokenised into {folder} in {time.perf_counter() - start:.1f} s")
    return splits


class _Shard:
    """A shard while its pieces pass: always counted, and tokenised where it is to be written, by
    the worker, while the next pieces are read."""

    def __init__(self, path: Path, tokenizer: Tokenizer, worker: Executor) -> None:
        self.counts = Counts(1, 0, 0, 0)
        self._path, self._tokenizer, self._worker = path, tokenizer, worker
        self._kept = _whole_shard(path, tokenizer)
        self._batch: list[Piece | EncodedPiece] = []
        self._batch_chars = 0
        self._ids: list[NDArray[np.unsignedinteger]] = []
        self._at_work: deque[Future[list[NDArray[np.unsignedinteger]]]] = deque()

    def add(self, piece: Piece | EncodedPiece, ids: NDArray[np.integer] | None) -> None:
        """Add a piece, and its ids if they are known already."""
        self.counts += Counts(0, 1, int(piece.last), piece.n_bytes)
        if self._kept:
            return
        if ids is not None:
            self._finish()
            self._ids += self._as_stored([piece], [ids])
            return
        self._batch.append(piece)
        self._batch_chars += piece.chars
        if self._batch_chars >= BATCH_CHARS:
            self._encode_batch()

    def _encode_batch(self) -> None:
        self._collect(1)
        self._at_work.append(self._worker.submit(self._encode, self._batch))
        self._batch, self._batch_chars = [], 0

    def _collect(self, left: int) -> None:
        """Take the ids of all batches but the newest, of which so many may be at work."""
        while len(self._at_work) > left:
            self._ids += self._at_work.popleft().result()

    def _finish(self) -> None:
        """Take the ids of all pieces so far."""
        if self._batch:
            self._encode_batch()
        self._collect(0)

    def _encode(self, batch: list[Piece | EncodedPiece]) -> list[NDArray[np.unsignedinteger]]:
        encoded = self._tokenizer.encode_documents([piece.text for piece in batch])
        return self._as_stored(batch, encoded)

    def _as_stored(
        self, batch: list[Piece | EncodedPiece], encoded: Iterable[NDArray[np.integer]]
    ) -> list[NDArray[np.unsignedinteger]]:
        dtype = id_dtype(self._tokenizer.vocab_size)
        end = np.array([self._tokenizer.eot_id], dtype=dtype)
        found = []
        for piece, ids in zip(batch, encoded, strict=True):
            found.append(ids.astype(dtype))
            if piece.last:
                found.append(end)
        return found

    def close(self) -> ShardInfo:
        """Write the shard, if it is not there."""
        if self._kept and self._kept.counts != self.counts:
            raise shard_error(
                self._path,
                "of an interrupted preparation holds other text than belongs in it: another "
                "version of this program cut the text otherwise",
            )
        if self._kept:
            return self._kept
        self._finish()
        return write_shard(
            self._path,
            np.concatenate(self._ids),
            vocab_size=self._tokenizer.vocab_size,
            tokenizer_hash=self._tokenizer.hash,
            counts=self.counts,
        )


def _whole_shard(path: Path, tokenizer: Tokenizer) -> ShardInfo | None:
    """The shard that an interrupted run left, if it is sound."""
    if not path.exists():
        return None
    try:
        info = verify_shard(path)
    except ShardError:
        return None
    return info if info.tokenizer_hash == tokenizer.hash else None
