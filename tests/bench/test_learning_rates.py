"""The presets' learning rates are those that the committed sweeps found best."""

import json
from collections import defaultdict
from statistics import mean

from bench import learning_rates
from bench.harness.results import FOLDER
from gpt2.config import TrainConfig, settle


def test_an_optimizers_default_is_the_best_of_the_sweep_and_lies_inside_it():
    losses: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    file = FOLDER / "cpu-epyc-2/learning-rates/demo.json"
    for run in json.loads(file.read_text(encoding="utf-8")):
        losses[run["optimizer"]][run["lr"]].append(run["val_loss"])
    assert losses
    for optimizer, found in losses.items():
        best = min(found, key=lambda lr: mean(found[lr]))
        assert min(found) < best < max(found)
        assert settle(TrainConfig(preset="demo", optimizer=optimizer)).lr == best
    assert settle(TrainConfig(preset="demo")).lr == settle(TrainConfig(optimizer="muon")).lr == 1e-2
    assert settle(TrainConfig(optimizer="adamw", lr=0.1)).lr == 0.1


def test_a_sweep_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    trained = []
    monkeypatch.setattr(learning_rates, "_train", lambda run: trained.append(run) or len(trained))
    out = tmp_path / "sweep.json"
    for rates in ((0.1,), (0.1, 0.2)):
        learning_rates.main(learning_rates.Arguments(out, lr=rates, steps=3))
    assert [(run["lr"], run["seed"]) for run in trained] == [(0.1, 1), (0.1, 2), (0.2, 1), (0.2, 2)]
    assert "demo adamw 3 steps lr 0.2: 3.500 of 2" in capsys.readouterr().out
