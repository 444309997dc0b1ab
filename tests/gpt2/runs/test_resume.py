"""A run goes on with what it began with: files of two runs that were mixed up are named."""

import json
import shutil

import pytest

from gpt2.config import TrainConfig
from gpt2.runs.checkpoint import list_checkpoints, load_newest
from gpt2.runs.resume import resumed_settings
from gpt2.runs.run import write_config
from tests.gpt2.data.streams import make_trainer


@pytest.fixture
def run(tmp_path):
    """The folder of a run with checkpoints of its steps 4, 8 and 12."""
    _train(tmp_path / "run")
    return tmp_path / "run"


def _train(folder, **settings):
    trainer = make_trainer(folder, **settings)
    write_config(folder, trainer.settings, trainer.model.config)
    trainer.fit()


def _edit(run, part, **changes):
    path = run / "config.json"
    content = json.loads(path.read_text())
    content[part] |= changes
    path.write_text(json.dumps(content))


def _resumed(run, **given):
    return resumed_settings(TrainConfig(resume=str(run), **given), given)


def test_the_saved_configuration_is_used_with_what_may_be_given_anew(run):
    config = _resumed(run, eval_every=2, auto_batch=True)
    assert (config.eval_every, config.auto_batch, config.steps, config.lr) == (2, True, 12, 5e-3)
    with pytest.raises(ValueError, match=r"--lr 0.1 cannot be changed .* goes on with 0.005"):
        _resumed(run, lr=0.1)


def test_what_is_given_counts_although_it_is_the_default(run):
    _edit(run, "train", on_spike="rollback", recompute="block", track="trackio", log_every=3)
    config = _resumed(run, on_spike="warn", recompute="none", track=None, eval_every=None)
    assert (config.on_spike, config.recompute, config.track) == ("warn", "none", None)
    assert (config.log_every, config.eval_every) == (3, 100)
    with pytest.raises(ValueError, match=r"--optimizer None cannot .* goes on with adamw"):
        _resumed(run, optimizer=None)
    _edit(run, "train", dropout=0.1)
    for path in list_checkpoints(run / "checkpoints"):
        shutil.rmtree(path)
    with pytest.raises(ValueError, match=r"--dropout 0.0 cannot .* goes on with 0.1"):
        _resumed(run, dropout=0.0)


def test_another_machine_may_compute_in_another_way(run):
    _edit(run, "train", attn="flash", kernels="triton", dtype="bf16", compile=True)
    config = _resumed(run, attn="sdpa", kernels="torch", dtype="fp32", compile=False)
    assert (config.attn, config.kernels, config.dtype) == ("sdpa", "torch", "fp32")
    assert not config.compile


def test_micro_batches_may_be_smaller_where_memory_ran_out(run):
    config = _resumed(run, batch_size=1, grad_accum=6)
    assert (config.batch_size, config.grad_accum) == (1, 6)
    with pytest.raises(ValueError, match=r"takes 2 x 3 sequences .* got 1 x 3"):
        _resumed(run, batch_size=1)


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("train", {"seed": 7}),
        ("train", {"data": "other.txt"}),
        ("train", {"grad_accum": 6}),
        ("model", {"n_head": 4}),  # weights of the same shapes
    ],
)
def test_another_configuration_is_refused(run, part, changes):
    _edit(run, part, **changes)
    with pytest.raises(ValueError, match="was trained with another configuration than") as caught:
        _resumed(run)
    assert str(list_checkpoints(run / "checkpoints")[0]) in str(caught.value)
    assert str(run / "config.json") in str(caught.value)


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("train", {"eval_every": 3, "device": "cpu", "recompute": "block"}),
        ("train", {"batch_size": 1, "grad_accum": 6}),  # halved by --auto-batch
        ("model", {"attn": "triton"}),
    ],
)
def test_what_does_not_change_the_training_may_differ(run, part, changes):
    _edit(run, part, **changes)
    _resumed(run)


def test_a_checkpoint_of_another_run_is_refused(run, tmp_path):
    _train(tmp_path / "other", seed=7, steps=16)
    shutil.copytree(tmp_path / "other/checkpoints/step-000016", run / "checkpoints/step-000016")
    with pytest.raises(ValueError, match=r"step-000016 was trained with another .*\(seed 7 there"):
        _resumed(run)


def test_a_damaged_checkpoint_is_left_to_those_that_pass_over_it(run):
    newest = list_checkpoints(run / "checkpoints")[-1]
    state = newest / "state.json"
    state.write_text(state.read_text().replace('"seed": 1337', '"seed": 7'))
    _resumed(run)


@pytest.mark.parametrize(("before", "now"), [("a", "b"), ("a", "a"), ("", "a")])
def test_another_text_is_refused_where_it_is_known(tmp_path, before, now):
    trainer = make_trainer(tmp_path)
    trainer.data_hash = before
    trainer.fit()
    second = make_trainer(tmp_path)
    second.data_hash = now
    checkpoint, _ = load_newest(tmp_path / "checkpoints")
    if before in ("", now):
        second.restore(checkpoint)
    else:
        with pytest.raises(ValueError, match="was trained on another text than python-docs is"):
            second.restore(checkpoint)
