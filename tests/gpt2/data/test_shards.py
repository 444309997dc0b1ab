"""gpt2.data.shards: what is written is read back, and damage is named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.data import shards
from gpt2.data.shards import HEADER_BYTES, Counts, ShardError, open_shards, write_shard
from tests.gpt2.data.corpora import flip

HASH = "ab" * 32


def save(path: Path, ids: Any, *, vocab_size: int = 1000, tokenizer_hash: str = HASH) -> Path:
    counts = Counts(1, 5, 2, 30)
    stored = np.asarray(ids, dtype=shards.id_dtype(vocab_size))
    write_shard(path, stored, vocab_size=vocab_size, tokenizer_hash=tokenizer_hash, counts=counts)
    return path


@pytest.mark.parametrize(("vocab_size", "itemsize"), [(257, 2), (65536, 2), (65537, 4)])
def test_ids_up_to_the_last_of_the_vocabulary_survive(tmp_path, vocab_size, itemsize):
    ids = [0, 1, vocab_size - 1]
    path = save(tmp_path / "a.bin", ids, vocab_size=vocab_size)
    assert path.stat().st_size == HEADER_BYTES + 3 * itemsize
    assert open_shards([path], verify=True).read(0, 3).tolist() == ids


def test_header_tells_what_was_written_and_the_stream_adds_it_up(tmp_path):
    paths = [save(tmp_path / f"{i}.bin", [i] * (i + 1)) for i in range(3)]
    info = shards.read_header(paths[2])
    assert (info.vocab_size, info.tokens, info.tokenizer_hash) == (1000, 3, HASH)
    assert info.counts == Counts(shards=1, pieces=5, documents=2, text_bytes=30)
    stream = open_shards(paths)
    assert (len(stream), stream.n_documents, stream.n_bytes) == (6, 6, 90)
    assert (stream.vocab_size, stream.tokenizer_hash) == (1000, HASH)


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 7), min_size=1, max_size=5), data=st.data())
def test_read_is_a_slice_of_the_joined_shards(tmp_path_factory, lengths, data):
    folder = tmp_path_factory.mktemp("shards")
    whole = np.arange(sum(lengths))
    parts = np.split(whole, np.cumsum(lengths)[:-1])
    stream = open_shards([save(folder / f"{i}.bin", part) for i, part in enumerate(parts)])
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    got = stream.read(start, stop)
    assert got.dtype == np.int64
    assert np.array_equal(got, whole[start:stop])


def test_reads_are_copies_within_the_stream(tmp_path):
    stream = open_shards([save(tmp_path / "a.bin", [1, 2, 3])])
    stream.read(0, 3)[:] = 9
    assert stream.read(0, 3).tolist() == [1, 2, 3]
    for start, stop in [(-1, 2), (2, 1), (0, 4)]:
        with pytest.raises(IndexError):
            stream.read(start, stop)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda content: content[:-1], "cut short"),
        (lambda content: content + b"\0\0", "cut short"),
        (lambda content: content[:12] + b"\4" + content[13:], "has a damaged header"),
        (lambda content: content[:100], "is not a token shard"),
        (lambda content: b"PK\3\4\0\0\0\0" + content[8:], "is not a token shard"),
        (lambda content: content[:8] + b"\2" + content[9:], "format version 2"),
        (None, "cannot be read"),
    ],
)
def test_damage_is_found_at_opening_and_the_shard_named(tmp_path, change, problem):
    paths = [save(tmp_path / f"train-0000{i}.bin", range(100)) for i in range(3)]
    if change:
        paths[1].write_bytes(change(paths[1].read_bytes()))
    else:
        paths[1].unlink()
    with pytest.raises(ShardError, match=rf"train-00001\.bin .*{problem}.*Delete the folder"):
        open_shards(paths)


@pytest.mark.parametrize("offset", [HEADER_BYTES, HEADER_BYTES + 199])
def test_a_changed_bit_fails_the_checksum(tmp_path, offset):
    path = save(tmp_path / "train-00000.bin", range(100))
    shards.verify_shard(path)
    flip(path, offset)
    open_shards([path])  # cheap checks alone cannot see it
    with pytest.raises(ShardError, match=r"train-00000\.bin.*SHA-256"):
        open_shards([path], verify=True)


def test_another_tokenizer_is_refused(tmp_path):
    path = save(tmp_path / "a.bin", [1, 2])
    with pytest.raises(ShardError, match=r"abababab.*not with cdcdcdcd"):
        open_shards([path], tokenizer_hash="cd" * 32)
    other = save(tmp_path / "b.bin", [1, 2], tokenizer_hash="cd" * 32)
    with pytest.raises(ShardError, match=r"b\.bin"):
        open_shards([path, other])
