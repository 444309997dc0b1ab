"""gpt2.runs.metrics and trackers: each tracker has the numbers that metrics.jsonl has."""

import math
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from gpt2.common.files import write_json
from gpt2.common.json_files import read_json_object
from gpt2.config import GPTConfig, TrainConfig, settle
from gpt2.runs.metrics import Logs, read_metrics
from gpt2.runs.run import read_config_file, write_config
from gpt2.training.run_training import make_plan

STEPS = [{"step": 1, "loss": 3.0, "lr": 0.1}, {"step": 2, "loss": 2.0}, {"step": 3, "loss": 1.0}]


def log_and_resume(folder, track):
    """Three steps, and the last of them again after a crash."""
    for steps, after in ((STEPS, -1), (STEPS[2:], 2)):
        logs = Logs(folder, track=track, after_step=after)
        for metrics in steps:
            logs.write(**metrics, grad_norm=math.inf)
        logs.close()
    assert read_metrics(folder / "metrics.jsonl") == STEPS


@pytest.mark.parametrize("track", ["wandb", "trackio"])
def test_a_tracker_is_given_the_same_numbers_offline_and_one_run_when_resumed(
    tmp_path, monkeypatch, track
):
    started: list[dict[str, Any]] = []
    given: list[dict[str, Any]] = []

    def init(**options: Any) -> SimpleNamespace:
        started.append(options)
        return library

    def log(metrics: dict[str, Any], *, step: int) -> None:
        given.append({"step": step, **metrics})

    library = SimpleNamespace(init=init, log=log, finish=lambda: given.append({}))
    monkeypatch.setitem(sys.modules, track, library)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    log_and_resume(tmp_path, track)
    assert given == [*STEPS, {}, *STEPS[2:], {}]
    assert started[0] == started[1]
    assert started[0]["resume"] == "allow"
    assert started[0]["name"].startswith(tmp_path.name)
    if track == "wandb":
        assert (started[0]["mode"], started[0]["dir"]) == ("offline", tmp_path)
        monkeypatch.setenv("WANDB_MODE", "online")
        log_and_resume(tmp_path, track)
        assert started[2]["mode"] == "online"


def test_tensorboard_has_the_same_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log_and_resume(tmp_path, "tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert events.Tags()["scalars"] == ["loss", "lr"]


@pytest.mark.parametrize("track", ["tensorboard", "wandb", "trackio"])
def test_a_tracker_that_is_missing_is_named_before_there_is_a_run(monkeypatch, track):
    monkeypatch.setitem(sys.modules, track, None)
    with pytest.raises(ValueError, match=rf"--track {track} .* pip install -e '\.\[{track}\]'"):
        make_plan(TrainConfig(track=track))


@pytest.mark.parametrize(("before", "now"), [(True, "tensorboard"), (False, None)])
def test_runs_before_there_were_trackers_are_read(tmp_path, before, now):
    write_config(tmp_path, settle(TrainConfig()), GPTConfig(vocab_size=257))
    path = tmp_path / "config.json"
    content = read_json_object(path)
    del content["train"]["track"]
    content["train"]["tensorboard"] = before
    write_json(path, content)
    assert read_config_file(path)[0].track == now
