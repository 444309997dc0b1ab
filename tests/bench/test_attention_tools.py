"""The tuner and the picture of the attention kernel."""

import ast
import json
from pathlib import Path

import pytest
import torch

from bench.plot.attention_tiles import CUT, WHOLE, computed_tiles, plot, useful_share
from bench.tune_attention import CANDIDATES, KERNELS, Measurement, best, rows, tune
from kernels._attention import operators as _attention_ops
from kernels._attention.tiles import Tile, Tiles
from kernels._common.launch import INTERPRETED
from kernels.attention import attention
from tests.kernels.work_counts import count_work

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")


@pytest.mark.skipif(not INTERPRETED, reason="counts are taken in the interpreter")
@pytest.mark.parametrize("window", [None, 1, 20, 48, 200])
@pytest.mark.parametrize(("block_m", "block_n"), [(32, 16), (16, 32), (32, 32)])
def test_the_picture_shows_the_tiles_that_the_kernel_computes(
    block_m: int, block_n: int, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    length, width = 112, 16
    tile = Tile(block_m, block_n, 4, 1)
    monkeypatch.setattr(_attention_ops, "choose_tiles", lambda *_: Tiles(tile, tile, tile))
    q = torch.randn(1, length, 1, width)
    with count_work() as work:
        attention(q, q, q, window=window)
    boxes = list(computed_tiles(length, window, block_m, block_n))
    assert work.flops == 4 * width * sum(box.height * box.width for box in boxes)
    position = torch.arange(length)
    behind = position[:, None] - position[None, :]
    visible = (behind >= 0) & (behind < (length if window is None else window))
    for box in boxes:
        part = visible[box.row : box.row + box.height, box.col : box.col + box.width]
        assert part.any()
        if box.kind == WHOLE:
            assert part.all()
    assert {box.kind for box in boxes} <= {WHOLE, CUT}


def test_shares_are_those_of_the_tile_arithmetic() -> None:
    assert useful_share(1024, 192, 128) == pytest.approx(0.67, abs=0.005)
    assert useful_share(1024, 128, 64) == pytest.approx(0.89, abs=0.005)
    assert useful_share(512, 128, 128) == pytest.approx(0.80, abs=0.005)


def test_the_picture_is_written_twice_alike(tmp_path: Path) -> None:
    first = [file.read_bytes() for file in plot(tmp_path / "a", length=256, window=100)]
    again = [file.read_bytes() for file in plot(tmp_path / "b", length=256, window=100)]
    assert first == again


def test_a_dry_run_of_the_tuner_measures_and_prints_a_table(tmp_path, capsys):
    file = tune(tmp_path, dry_run=True)
    measured = json.loads(file.read_text())["measurements"]
    assert {m["kernel"] for m in measured} == set(KERNELS)
    assert all(m["milliseconds"] > 0 for m in measured), "every candidate gives the right result"
    printed = capsys.readouterr().out
    table = ast.literal_eval("{" + printed[printed.index('    ("') :] + "}")
    for row in table.values():
        assert all(Tile(*tile) in CANDIDATES["fwd"] for tile in (short[0] for short in row))


@pytest.mark.skipif(not INTERPRETED, reason="on a GPU tuning works")
def test_tuning_without_a_gpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a GPU"):
        tune(tmp_path)


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
