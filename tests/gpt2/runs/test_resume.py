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
    return resumed_settings(TrainConfig(resume=str(run), **given))


def test_the_saved_configuration_is_used_with_what_may_be_given_anew(run):
    config = _resumed(run, eval_every=2, auto_batch=True)
    assert (config.eval_every, config.auto_batch, config.steps, config.lr) == (2, True, 12, 5e-3)
    with pytest.raises(ValueError, match=r"--lr 0.1 cannot be changed .* goes on with 0.005"):
        _resumed(run, lr=0.1)


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
