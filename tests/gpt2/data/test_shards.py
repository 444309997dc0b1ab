"""gpt2.data.shards: what is written is read back, and damage is named (B2, B11)."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.data.shards import (
    HEADER_BYTES,
    Counts,
    ShardError,
    TokenStream,
    id_dtype,
    read_header,
    verify_shard,
    write_shard,
)

HASH = "ab" * 32


def save(path: Path, ids: Any, *, vocab_size: int = 1000, tokenizer_hash: str = HASH) -> Path:
    counts = Counts(1, 5, 2, 30)
    stored = np.asarray(ids, dtype=id_dtype(vocab_size))
    write_shard(path, stored, vocab_size=vocab_size, tokenizer_hash=tokenizer_hash, counts=counts)
    return path


@pytest.mark.parametrize(("vocab_size", "itemsize"), [(257, 2), (65536, 2), (65537, 4)])
def test_ids_up_to_the_last_of_the_vocabulary_survive(tmp_path, vocab_size, itemsize):
    ids = [0, 1, vocab_size - 1]
    path = save(tmp_path / "a.bin", ids, vocab_size=vocab_size)
    assert path.stat().st_size == HEADER_BYTES + 3 * itemsize
    assert TokenStream([path], verify=True).read(0, 3).tolist() == ids


def test_header_tells_what_was_written(tmp_path):
    info = read_header(save(tmp_path / "a.bin", [1, 2, 3]))
    assert (info.vocab_size, info.tokens, info.tokenizer_hash) == (1000, 3, HASH)
    assert info.counts == Counts(shards=1, pieces=5, documents=2, text_bytes=30)


def test_stream_adds_up_its_shards(tmp_path):
    paths = [save(tmp_path / f"{i}.bin", [i] * (i + 1)) for i in range(3)]
    stream = TokenStream(paths)
    assert (len(stream), stream.n_documents, stream.n_bytes) == (6, 6, 90)
    assert (stream.vocab_size, stream.tokenizer_hash) == (1000, HASH)


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 7), min_size=1, max_size=5), data=st.data())
def test_read_is_a_slice_of_the_joined_shards(tmp_path_factory, lengths, data):
    folder = tmp_path_factory.mktemp("shards")
    whole = np.arange(sum(lengths))
    parts = np.split(whole, np.cumsum(lengths)[:-1])
    stream = TokenStream([save(folder / f"{i}.bin", part) for i, part in enumerate(parts)])
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    got = stream.read(start, stop)
    assert got.dtype == np.int64
    assert np.array_equal(got, whole[start:stop])


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (2, 1), (0, 4)])
def test_read_outside_of_the_stream_is_refused(tmp_path, start, stop):
    with pytest.raises(IndexError):
        TokenStream([save(tmp_path / "a.bin", [1, 2, 3])]).read(start, stop)


def test_reads_are_copies(tmp_path):
    stream = TokenStream([save(tmp_path / "a.bin", [1, 2, 3])])
    stream.read(0, 3)[:] = 9
    assert stream.read(0, 3).tolist() == [1, 2, 3]


def damaged(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncated":
        del content[-1:]
    elif how == "cut in the header":
        del content[100:]
    elif how == "longer":
        content += b"\0\0"
    elif how == "another file":
        content[:8] = b"PK\3\4\0\0\0\0"
    elif how == "newer version":
        content[8] += 1
    elif how == "missing":
        path.unlink()
        return
    path.write_bytes(content)


@pytest.mark.parametrize(
    "how",
    ["truncated", "cut in the header", "longer", "another file", "newer version", "missing"],
)
def test_damage_is_found_at_opening_and_the_shard_named(tmp_path, how):
    paths = [save(tmp_path / f"train-0000{i}.bin", range(100)) for i in range(3)]
    damaged(paths[1], how)
    with pytest.raises(ShardError, match=r"train-00001\.bin.*Delete the folder"):
        TokenStream(paths)


@pytest.mark.parametrize("offset", [HEADER_BYTES, HEADER_BYTES + 101, HEADER_BYTES + 199])
def test_a_changed_bit_fails_the_checksum(tmp_path, offset):
    path = save(tmp_path / "train-00000.bin", range(100))
    verify_shard(path)
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)
    TokenStream([path])  # cheap checks alone cannot see it
    with pytest.raises(ShardError, match=r"train-00000\.bin.*SHA-256"):
        TokenStream([path], verify=True)


def test_another_tokenizer_is_refused(tmp_path):
    path = save(tmp_path / "a.bin", [1, 2])
    with pytest.raises(ShardError, match=r"abababab.*not with cdcdcdcd"):
        TokenStream([path], tokenizer_hash="cd" * 32)
    other = save(tmp_path / "b.bin", [1, 2], tokenizer_hash="cd" * 32)
    with pytest.raises(ShardError, match=r"b\.bin"):
        TokenStream([path, other])
