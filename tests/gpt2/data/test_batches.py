"""gpt2.data.batches: every token a target once an epoch, from any place on."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.data.batches import Batches
from gpt2.data.shards import Counts, TokenStream, open_shards, write_shard
from tests.gpt2.data.streams import ArrayStream


def stream_of(folder: Path, n_tokens: int) -> TokenStream:
    """Tokens 0, 1, 2, ... in two shards, so that a token is its own position."""
    paths = []
    for i, part in enumerate(np.array_split(np.arange(n_tokens, dtype="<u2"), 2)):
        paths.append(folder / f"{i}.bin")
        counts = Counts(1, 1, 1, 1)
        write_shard(paths[-1], part, vocab_size=1 << 16, tokenizer_hash="ab", counts=counts)
    return open_shards(paths)


@pytest.fixture
def stream(tmp_path):
    return stream_of(tmp_path, 1003)


def epoch_of_starts(batches: Batches) -> list[int]:
    """Where the windows of the next epoch begin; for batches of one window."""
    return [int(batches.next()[0][0, 0]) for _ in range(batches.windows_per_epoch)]


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_each_epoch_serves_each_window_of_a_grid_once(stream, epoch):
    batches = Batches(stream, seq_len=10, batch_size=1, seed=5)
    batches.load_state_dict({"seed": 5, "epoch": epoch, "index": 0})
    targets: Counter[int] = Counter()
    for _ in range(batches.windows_per_epoch):
        x, y = batches.next()
        assert torch.equal(y, (x + 1) % len(stream))  # from the last token on to the first
        targets.update(y.flatten().tolist())
    assert set(targets.values()) == {1}
    assert len(targets) == batches.windows_per_epoch * 10 == 1000


def test_epochs_differ_in_order_and_from_the_second_on_in_place(stream):
    batches = Batches(stream, seq_len=10, batch_size=1, seed=5)
    epochs = [epoch_of_starts(batches) for _ in range(4)]
    assert sorted(epochs[0]) == list(range(0, 1000, 10))
    assert epochs[0] != sorted(epochs[0])
    assert len({tuple(sorted(starts)) for starts in epochs}) == 4
    for seed in (5, 6):
        other = epoch_of_starts(Batches(stream, seq_len=10, batch_size=1, seed=seed))
        assert (other == epochs[0]) == (seed == 5)


@pytest.mark.parametrize("size", [7, 259])
def test_batches_reach_over_the_end_of_an_epoch(stream, size):
    one = Batches(stream, seq_len=10, batch_size=1, seed=3)
    windows = torch.cat([one.next()[0] for _ in range(259)])
    many = Batches(stream, seq_len=10, batch_size=size, seed=3)
    served = [many.next() for _ in range(259 // size)]
    assert torch.equal(torch.cat([x for x, _ in served]), windows)
    assert many.epoch == pytest.approx(2.59)
    for tensor in served[0]:
        assert (tensor.shape, tensor.dtype) == ((size, 10), torch.int64)
        assert tensor.is_contiguous()


@settings(max_examples=30, deadline=None)
@given(served=st.integers(0, 90), batch_size=st.integers(1, 9))
def test_a_saved_position_continues_exactly(tmp_path_factory, served, batch_size):
    stream = stream_of(tmp_path_factory.mktemp("stream"), 207)
    batches = Batches(stream, seq_len=10, batch_size=batch_size, seed=7)
    for _ in range(served):
        batches.next()
    state = batches.state_dict()
    assert len(state) == 3
    assert all(type(value) is int for value in state.values())
    resumed = Batches(stream, seq_len=10, batch_size=batch_size, seed=99)
    resumed.load_state_dict(state)
    for _ in range(25):
        assert torch.equal(batches.next()[0], resumed.next()[0])
    assert batches.state_dict() == resumed.state_dict()


def test_seeking_reads_nothing(stream, monkeypatch):
    batches = Batches(stream, seq_len=10, batch_size=4, seed=0)
    monkeypatch.setattr(stream, "read", None)
    monkeypatch.setattr(batches, "next", None)
    batches.load_state_dict({"seed": 0, "epoch": 10**9, "index": 99})
    assert batches.epoch == pytest.approx(10**9 + 0.99)


@pytest.mark.parametrize(
    "state", [{"seed": 0, "epoch": 0, "index": 101}, {"seed": 0, "epoch": -1, "index": 0}, {}]
)
def test_a_position_of_other_data_is_refused(stream, state):
    batches = Batches(stream, seq_len=10, batch_size=1, seed=0)
    with pytest.raises(ValueError, match=r"100 windows of 10 tokens.*other data"):
        batches.load_state_dict(state)


def test_too_short_a_text_says_what_it_needs(tmp_path):
    stream = stream_of(tmp_path, 16)
    assert Batches(stream, seq_len=15, batch_size=1, seed=0).windows_per_epoch == 1
    # Where the last token falls on a border, it is no input: it has no successor.
    assert epoch_of_starts(Batches(stream, seq_len=8, batch_size=1, seed=0)) == [0]
    with pytest.raises(ValueError, match=r"--seq-len 16 needs 17 tokens and there are 16"):
        Batches(stream, seq_len=16, batch_size=1, seed=0)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6])
def test_processes_share_the_windows_without_overlap_or_loss(size):
    """A step of 12 windows in micro-batches of 4 or fewer, over the end of an epoch of 20."""
    stream = ArrayStream(np.arange(20 * 3 + 1))

    def sequence(size=1, rank=0):
        batches = Batches(stream, seq_len=3, batch_size=4, seed=1, size=size, rank=rank)
        own = 12 // size
        steps = 3 * [min(4, own - i) for i in range(0, own, 4)]
        return torch.cat([batches.next(n)[0] for n in steps]), batches.state_dict()

    whole, position = sequence()
    for rank in range(size):
        windows, own_position = sequence(size, rank)
        assert torch.equal(windows, whole[rank::size])
        assert own_position == position
