"""Checkpoints: exact resumption, and nothing lost whenever the process dies."""

import itertools
import random
import re
import signal

import numpy as np
import pytest
import torch

from gpt2.runs import checkpoint as checkpoints
from gpt2.runs.checkpoint import list_checkpoints, load_checkpoint, load_newest, step_of
from gpt2.runs.metrics import read_metrics
from gpt2.runs.random_state import random_states, set_random_states
from tests.gpt2.data.streams import make_trainer, text_stream
from tests.gpt2.stand_ins import curve


def _interrupt(trainer, step):
    """Send this process a signal in the middle of an accumulation, in the given step."""
    forwards = itertools.count(1)

    def signal_once(model, args):
        if model.training and next(forwards) == step * 3 + 2:
            signal.raise_signal(signal.SIGTERM)

    trainer.model.register_forward_pre_hook(signal_once)


SETTINGS = {"model": {"dropout": 0.1}, "steps": 14}  # epochs end within steps: 31 windows, 6 a step


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path, optimizer, dtype):
    settings = SETTINGS | {"optimizer": optimizer, "dtype": dtype}
    straight = make_trainer(tmp_path / "straight", **settings)
    assert straight.fit() is None

    first = make_trainer(tmp_path / "broken", **settings)
    _interrupt(first, step=6)  # in the middle of an accumulation, of an epoch, between checkpoints
    assert first.fit() == signal.SIGTERM
    assert first.step == 7  # the step at hand was finished and saved
    second = make_trainer(tmp_path / "broken", **settings)
    torch.manual_seed(99)
    checkpoint, damaged = load_newest(tmp_path / "broken" / "checkpoints")
    assert not damaged
    second.restore(checkpoint)
    assert second.fit() is None

    assert curve(tmp_path / "broken") == curve(tmp_path / "straight")
    for a, b in zip(straight.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_killed_run_repeats_the_lost_steps_exactly(tmp_path):
    straight = make_trainer(tmp_path / "straight", **SETTINGS)
    straight.fit()
    killed = make_trainer(tmp_path / "killed", **SETTINGS)
    forward = killed.next_step

    def die_at_eleven():
        if killed.step == 10:
            raise MemoryError
        return forward()

    killed.next_step = die_at_eleven
    with pytest.raises(MemoryError):
        killed.fit()
    assert read_metrics(tmp_path / "killed" / "metrics.jsonl")[-1]["step"] == 10
    second = make_trainer(tmp_path / "killed", **SETTINGS)
    second.restore(load_newest(tmp_path / "killed" / "checkpoints")[0])
    assert second.step == 8
    second.fit()
    assert curve(tmp_path / "killed") == curve(tmp_path / "straight")


def test_the_newest_and_the_best_are_kept(tmp_path):
    trainer = make_trainer(tmp_path, steps=20, eval_every=4, checkpoint_every=1, keep=2)
    losses = iter([3.0, 1.0, 2.0, 2.5, 1.5])
    trainer._validate = lambda: next(losses)
    trainer.fit()
    assert [step_of(p) for p in list_checkpoints(tmp_path / "checkpoints")] == [8, 19, 20]
    assert step_of(checkpoints.best_checkpoint(tmp_path / "checkpoints")) == 8
    assert trainer.best_model()[1] == 8


@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "empty", "manifest"])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_used(tmp_path, name, damage):
    trainer = make_trainer(tmp_path, steps=8, eval_every=100)
    trainer.fit()
    newest = list_checkpoints(tmp_path / "checkpoints")[-1]
    path = newest / ("manifest.json" if damage == "manifest" else name)
    content = path.read_bytes()
    if damage == "delete":
        path.unlink()
    elif damage == "flip":
        path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    else:
        path.write_bytes(content[: len(content) // 2] if damage != "empty" else b"")
    with pytest.raises(checkpoints.DamagedCheckpoint, match=re.escape(str(path))):
        load_checkpoint(newest)
    checkpoint, damaged = load_newest(tmp_path / "checkpoints")
    assert checkpoint.state.step == 4
    assert len(damaged) == 1
    assert str(path) in damaged[0]


def test_no_usable_checkpoint_is_an_error_that_says_why(tmp_path):
    with pytest.raises(ValueError, match=f"none was written: train anew, with --out {tmp_path}$"):
        load_newest(tmp_path / "checkpoints")


def test_every_random_generator_goes_on_where_it_stood():
    def draw():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.gauss(0, 1)  # noqa: NPY002

    random.gauss(0, 1)  # leaves a second number waiting in the generator
    state = random_states()
    first = draw()
    set_random_states(state, seed=0)
    assert draw() == first


def test_a_checkpoint_of_other_data_or_another_tokenizer_is_refused(tmp_path):
    make_trainer(tmp_path, steps=4).fit()
    checkpoint, _ = load_newest(tmp_path / "checkpoints")
    other = make_trainer(tmp_path, steps=4, train=text_stream(40))
    with pytest.raises(ValueError, match="does not exist"):
        other.restore(checkpoint)
    other.tokenizer_hash = "another"
    with pytest.raises(ValueError, match="trained with another tokenizer"):
        other.restore(checkpoint)
