"""The tuner of the attention kernel."""

import ast
import json

import pytest
import torch

from bench.tune_attention import (
    BY_ELEMENTS,
    CANDIDATES,
    DOCUMENT_CANDIDATES,
    KERNELS,
    Measurement,
    best,
    rows,
    tune,
)
from kernels._attention.tiles import Tile


@pytest.mark.parametrize("documents", [False, True])
def test_a_dry_run_of_the_tuner_measures_and_prints_a_table(
    documents, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("kernels._attention.operators.adds_whole_tiles", lambda *_: True)
    monkeypatch.setattr("bench.tune_attention.DOCUMENT", 20)
    file = tune(tmp_path, documents=documents, dry_run=True)
    measured = json.loads(file.read_text())["measurements"]
    assert {m["kernel"] for m in measured} == {*KERNELS} | (
        {BY_ELEMENTS} if not documents else set()
    )
    assert all(m["milliseconds"] > 0 for m in measured), "every candidate gives the right result"
    printed = capsys.readouterr().out
    table = ast.literal_eval("{" + printed[printed.index('    ("') :] + "}")
    for row in table.values():
        candidates = DOCUMENT_CANDIDATES if documents else CANDIDATES
        assert all(Tile(*tile) in candidates["fwd"] for tile in (short[0] for short in row))


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU tuning works")
@pytest.mark.parametrize(("interpreted", "dry_run"), [(True, False), (False, False), (False, True)])
def test_tuning_without_a_gpu_is_refused(tmp_path, monkeypatch, interpreted, dry_run):
    monkeypatch.setattr("bench.tune_attention.INTERPRETED", interpreted)
    with pytest.raises(ValueError, match="needs a GPU"):
        tune(tmp_path, dry_run=dry_run)


def test_the_winner_is_good_at_every_length_of_its_bucket() -> None:
    steady, peaky, broken = (Tile(size, 64, 4, 2) for size in (16, 32, 64))
    times = {steady: (1.1, 1.1), peaky: (1.0, 2.0), broken: (0.5, None)}
    measurements = [
        Measurement("fwd", 64, length, tile, t[i], None)
        for tile, t in times.items()
        for i, length in enumerate((512, 1024))
    ]
    assert best(measurements, "fwd", 64, short=False) == steady
    assert best(measurements, "fwd", 64, short=True) is None
    assert rows(measurements, "sm_90").startswith('    ("sm_90", 64): (')
