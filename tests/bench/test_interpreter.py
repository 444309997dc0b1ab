"""The measurement of the interpreters, and its table in bench/README.md."""

import json

import torch

from bench import interpreter
from bench.harness.results import FOLDER, ROOT


def test_both_interpreters_are_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(interpreter, "RECIPES", interpreter.RECIPES[:1])
    monkeypatch.setattr(interpreter, "TOKENS", (1, 8))
    monkeypatch.setattr(interpreter, "resident_memory", lambda *_: 2**30)
    out = tmp_path / "cpu" / "interpreter.json"
    interpreter.main(interpreter.Arguments(out=out))
    results = json.loads(out.read_text())
    assert results["versions"]["torch"] == torch.__version__
    assert all(s > 0 for row in results["rows"] for turns in row["seconds"].values() for s in turns)
    assert capsys.readouterr().out.count("| +0.00 GiB |") == 1


def test_the_readme_has_the_table_of_the_newest_results():
    text = (ROOT / "bench/README.md").read_text(encoding="utf-8")
    (folder,) = FOLDER.glob("*/interpreter")
    newest = max(folder.glob("*.json"))
    assert newest.relative_to(ROOT).as_posix() in text
    assert interpreter.table(json.loads(newest.read_text(encoding="utf-8"))) in text
