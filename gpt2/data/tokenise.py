"""A source's text to shards of token ids: one pass, bounded memory, resumable.

Each shard's header says how many pieces of its split it holds. As a source gives the same pieces in
the same order every time, a run that was killed is taken up by reading on past those pieces, which
costs no tokenising.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from gpt2.data.documents import Piece, Source
from gpt2.data.shards import ShardError, ShardInfo, id_dtype, verify_shard, write_shard
from gpt2.data.splits import SplitPlan, split_pieces
from gpt2.tokenizer import Tokenizer

_BATCH_CHARS = 1 << 22  # text handed to the tokenizer at once: work for every core


def write_splits(
    source: Source,
    plan: SplitPlan,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    shard_tokens: int,
    progress: bool,
) -> dict[str, list[ShardInfo]]:
    """Write every split of `source` as shards SPLIT-00000.bin, SPLIT-00001.bin, ... in `folder`.

    Whole shards that are already there are kept. Memory holds one batch of text and, per split, the
    ids of the shard at work.
    """
    splits = dict.fromkeys([*source.splits, *plan.taken])
    writers = {split: _SplitWriter(folder, split, tokenizer, shard_tokens) for split in splits}
    total = sum(source.sizes.values()) or None
    with tqdm(
        total=total,
        desc=f"tokenising {source.name}",
        unit="B",
        unit_scale=True,
        disable=not progress,
    ) as bar:
        for batch in _batches(split_pieces(source, plan)):
            fresh = [(writers[split], piece) for split, piece in batch if writers[split].wants()]
            texts = [piece.text for _, piece in fresh]
            for (writer, piece), ids in zip(fresh, tokenizer.encode_documents(texts), strict=True):
                writer.add(piece, ids)
            bar.update(sum(piece.consumed for _, piece in batch))
        if total:
            bar.update(total - bar.n)  # bytes after the last document: blank lines, a gzip trailer
    for writer in writers.values():
        writer.flush()
    return {split: writer.shards for split, writer in writers.items()}


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


class _SplitWriter:
    """Collects the ids of one split and writes a shard whenever there are enough.

    It starts after the shards of an earlier, interrupted run, and `wants` no piece that these hold.
    """

    def __init__(self, folder: Path, split: str, tokenizer: Tokenizer, shard_tokens: int) -> None:
        self._folder, self._split, self._tokenizer = folder, split, tokenizer
        self._shard_tokens = shard_tokens
        self.shards: list[ShardInfo] = []
        while (path := self._path(len(self.shards))).exists():
            try:
                info = verify_shard(path)
            except ShardError:
                break
            if info.tokenizer_hash != tokenizer.hash:
                break
            self.shards.append(info)
        self._skip = sum(info.pieces for info in self.shards)
        self._clear()

    def wants(self) -> bool:
        """Whether the next piece of this split is still to be written. Call it once per piece."""
        self._skip -= 1
        return self._skip < 0

    def add(self, piece: Piece, ids: NDArray[Any]) -> None:
        """Take the ids of a piece; a document's last is followed by the end-of-text id."""
        dtype = id_dtype(self._tokenizer.vocab_size)
        self._parts.append(np.asarray(ids, dtype=dtype))
        if piece.last:
            self._parts.append(np.array([self._tokenizer.eot_id], dtype=dtype))
        self._tokens += len(ids) + piece.last
        self._documents += piece.last
        self._text_bytes += len(piece.text.encode("utf-8"))
        self._pieces += 1
        if self._tokens >= self._shard_tokens:
            self.flush()

    def flush(self) -> None:
        """Write what has been collected as a shard, if it is anything."""
        if self._tokens:
            self.shards.append(
                write_shard(
                    self._path(len(self.shards)),
                    [np.concatenate(self._parts)],
                    vocab_size=self._tokenizer.vocab_size,
                    tokenizer_hash=self._tokenizer.hash,
                    documents=self._documents,
                    text_bytes=self._text_bytes,
                    pieces=self._pieces,
                )
            )
        self._clear()

    def _clear(self) -> None:
        self._parts: list[NDArray[np.unsignedinteger]] = []
        self._tokens = self._documents = self._text_bytes = self._pieces = 0

    def _path(self, number: int) -> Path:
        return self._folder / f"{self._split}-{number:05d}.bin"
