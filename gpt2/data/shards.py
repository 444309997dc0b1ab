"""Tokens on disk: shards with a checked header, memory-mapped and read as one long sequence.

A shard is a header of 256 bytes followed by the token ids: little-endian, uint16 where the
vocabulary fits into it and uint32 where it does not. The header is enough to judge the shard on its
own: its length, the tokenizer that wrote it, the SHA-256 of its ids, and how much text it holds. So
an interrupted preparation can keep it.
"""

import hashlib
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpt2.common.files import atomic_write, sha256_file

MAGIC = b"GPT2TOKS"
VERSION = 1
HEADER_BYTES = 256  # a multiple of every item size, so the mapped ids are aligned
# magic, version, item size, vocabulary, tokens, documents, text bytes, pieces, tokenizer, SHA-256
_HEADER = struct.Struct("<8sIIQQQQQ64s32s")
SHARD_NAME = re.compile(r"(train|valid|test)-[0-9]{5}\.bin")  # no path leads out of the folder


class ShardError(ValueError):
    """A shard is missing, truncated, damaged, or written by another tokenizer."""


@dataclass(frozen=True)
class Counts:
    """Amounts of text: of a piece, a shard or a split."""

    shards: int
    pieces: int  # see `gpt2.data.documents.Piece`
    documents: int  # that end in the text
    text_bytes: int  # in UTF-8

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.shards + other.shards,
            self.pieces + other.pieces,
            self.documents + other.documents,
            self.text_bytes + other.text_bytes,
        )


NO_TEXT = Counts(0, 0, 0, 0)


@dataclass(frozen=True)
class ShardInfo:
    """The contents of a shard's header."""

    vocab_size: int  # every id is below it
    tokens: int  # number of ids
    counts: Counts  # the text behind the ids, of one shard
    tokenizer_hash: str  # hex digits that identify the tokenizer
    sha256: str  # hex digest of the ids as stored

    @property
    def dtype(self) -> np.dtype:
        return id_dtype(self.vocab_size)

    @property
    def payload_bytes(self) -> int:
        return self.tokens * self.dtype.itemsize


def shard_name(split: str, number: int) -> str:
    """The file name of a split's shard; they are numbered from 0."""
    return f"{split}-{number:05d}.bin"


def id_dtype(vocab_size: int) -> np.dtype:
    """The stored type of ids below `vocab_size`: little-endian uint16 if they fit, else uint32."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def write_shard(
    path: Path,
    ids: NDArray[np.unsignedinteger],
    *,
    vocab_size: int,
    tokenizer_hash: str,
    counts: Counts,
) -> ShardInfo:
    """Write `ids` (1-D, contiguous, of `id_dtype(vocab_size)`) as one shard, atomically."""
    assert ids.ndim == 1
    assert ids.dtype == id_dtype(vocab_size)
    digest = hashlib.sha256(ids.data)
    info = ShardInfo(vocab_size, len(ids), counts, tokenizer_hash, digest.hexdigest())
    header = _HEADER.pack(
        MAGIC,
        VERSION,
        ids.dtype.itemsize,
        vocab_size,
        len(ids),
        counts.documents,
        counts.text_bytes,
        counts.pieces,
        tokenizer_hash.encode("ascii"),
        digest.digest(),
    )
    with atomic_write(path) as file:
        file.write(header.ljust(HEADER_BYTES, b"\0"))
        file.write(ids.data)
    return info


def read_header(path: Path) -> ShardInfo:
    """Read a shard's header; a `ShardError` if there is no such file, it is no shard, of another
    version, or not of the length it states."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            raw = file.read(HEADER_BYTES)
    except OSError as error:
        raise shard_error(path, f"cannot be read ({error.strerror})") from error
    if len(raw) < HEADER_BYTES or raw[: len(MAGIC)] != MAGIC:
        raise shard_error(path, "is not a token shard, or its beginning is damaged")
    (_, version, itemsize, vocab_size, tokens, documents, text_bytes, pieces, tokenizer, digest) = (
        _HEADER.unpack_from(raw)
    )
    if version != VERSION:
        raise shard_error(path, f"has format version {version}; this program reads {VERSION}")
    tokenizer_hash = tokenizer.rstrip(b"\0").decode("ascii", "replace")
    counts = Counts(1, pieces, documents, text_bytes)
    info = ShardInfo(vocab_size, tokens, counts, tokenizer_hash, digest.hex())
    if itemsize != info.dtype.itemsize:
        raise shard_error(path, "has a damaged header (item size and vocabulary disagree)")
    expected = HEADER_BYTES + info.payload_bytes
    if size != expected:
        raise shard_error(path, f"has {size:,} bytes, and its header says {expected:,}: cut short")
    return info


def verify_shard(path: Path) -> ShardInfo:
    """Check a shard's header, length and SHA-256; raise `ShardError` when one is wrong."""
    info = read_header(path)
    if sha256_file(path, start=HEADER_BYTES) != info.sha256:
        raise shard_error(path, "fails its SHA-256 checksum: its contents have changed")
    return info


def shard_error(path: Path, problem: str) -> ShardError:
    """The error for a shard that cannot be used: its path, the problem, and the remedy."""
    return ShardError(f"token shard {path} {problem}. {_remedy(path)}")


def _remedy(path: Path) -> str:
    return (
        f"Delete the folder {path.parent} and run again: it is prepared anew from the source text."
    )


class TokenStream:
    """The tokens of one split, read-only: memory-mapped files read as one sequence.

    Memory use does not grow with the length: the system loads pages as they are read and drops them
    when it needs the space.

    Args:
        parts: ids in order, each array (n,) of an integer type with the file that holds it.
        vocab_size, tokenizer_hash: of the tokenizer, see `ShardInfo`.
        n_bytes: bytes of the documents' text as UTF-8 (for bits per byte).
        n_documents: documents in the split.
        remedy: what to do when a file turns out to be damaged.
    """

    def __init__(
        self,
        parts: Sequence[tuple[Path, NDArray[np.integer]]],
        *,
        vocab_size: int,
        tokenizer_hash: str,
        n_bytes: int,
        n_documents: int,
        remedy: str,
    ) -> None:
        self.paths = tuple(path for path, _ in parts)
        self.vocab_size, self.tokenizer_hash = vocab_size, tokenizer_hash
        self.n_bytes, self.n_documents = n_bytes, n_documents
        self._arrays = [ids for _, ids in parts]
        self._remedy = remedy
        self._starts = np.cumsum([0] + [len(ids) for ids in self._arrays])  # (parts + 1,)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        """Tokens start..stop-1 as a new int64 array of shape (stop - start,), across files.

        Raises:
            ShardError: an id that is not below `vocab_size`, which no embedding has a row for.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens {start}..{stop} of a stream of {len(self)}")
        ids = np.empty(stop - start, dtype=np.int64)
        number = int(np.searchsorted(self._starts, start, side="right")) - 1
        filled = 0
        while filled < len(ids):
            offset = start + filled - int(self._starts[number])
            part = self._arrays[number][offset : offset + len(ids) - filled]
            ids[filled : filled + len(part)] = part
            if len(part) and part.max() >= self.vocab_size:
                raise ShardError(
                    f"{self.paths[number]} holds the id {part.max()}, and its vocabulary has "
                    f"{self.vocab_size} tokens: it has changed. {self._remedy}"
                )
            filled += len(part)
            number += 1
        return ids


def open_shards(
    paths: Sequence[Path], *, tokenizer_hash: str | None = None, verify: bool = False
) -> TokenStream:
    """Map the shards of a split into memory, in order.

    Documents follow each other, each closed by the end-of-text id.

    Args:
        tokenizer_hash: when given, every shard must have been written by this tokenizer.
        verify: also check each shard's SHA-256 (about 1 s per GB), not only header and length.

    Raises:
        ShardError: naming the shard and the remedy.
    """
    assert paths, "a split has at least one shard"
    infos = [verify_shard(path) if verify else read_header(path) for path in paths]
    expected = infos[0].tokenizer_hash if tokenizer_hash is None else tokenizer_hash
    parts = []
    for path, info in zip(paths, infos, strict=True):
        if info.tokenizer_hash != expected or info.vocab_size != infos[0].vocab_size:
            raise ShardError(
                f"token shard {path} was written with tokenizer {info.tokenizer_hash[:8]} "
                f"({info.vocab_size:,} tokens), not with {expected[:8]}: its ids would mean "
                "other text. Use the tokenizer.json beside it, or prepare the text again."
            )
        ids = np.memmap(path, info.dtype, mode="r", offset=HEADER_BYTES, shape=(info.tokens,))
        parts.append((path, ids))
    return TokenStream(
        parts,
        vocab_size=infos[0].vocab_size,
        tokenizer_hash=expected,
        n_bytes=sum(info.counts.text_bytes for info in infos),
        n_documents=sum(info.counts.documents for info in infos),
        remedy=_remedy(paths[0]),
    )
