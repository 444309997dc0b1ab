"""The measurement beside a busy process."""

import json
from pathlib import Path

import pytest

from bench import busy


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux")
def test_every_task_is_measured_beside_every_load(tmp_path, monkeypatch, capsys):
    for name, value in {"SLEEP": 0, "BATCH": (1, 8), "ROUNDS": 1, "SECONDS": 0.01}.items():
        monkeypatch.setattr(busy, name, value)
    out = tmp_path / "cpu" / "busy.json"
    busy.main(busy.Arguments(out=out, ways=("one thread",)))
    rates = json.loads(out.read_text())["tokens_per_s"]
    assert {task: list(loads) for task, loads in rates.items()} == {
        task: ["idle", "niced", "busy"] for task in ("train", "evaluate", "generate")
    }
    assert all(
        rate > 0 for loads in rates.values() for way in loads.values() for rate in way["one thread"]
    )
    assert len(capsys.readouterr().out.splitlines()) == 11


def test_the_table_shows_medians_and_what_they_are_to_the_first():
    turns = {"libgomp": [1000.0, 3000.0, 9.0], "ours": [2500.0, 1.0, 9999.0]}
    rates = {task: {"idle": turns} for task in busy.TASKS}
    assert busy.table(rates).splitlines()[2] == "| train, idle | 1,000 | 2,500 (x 2.50) |"
