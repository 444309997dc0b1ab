"""bench.plot draws what the rows hold, all of it and nothing else."""

import json
import re

import pytest
from matplotlib.axes import Axes
from PIL import Image

from bench.plot import style as plot_style
from bench.plot.__main__ import PLOTS, Arguments, draw, main
from gpt2.config import PRESETS
from gpt2.training.estimate import flops_per_token
from tests.bench import synthetic_results as made
from tests.bench.synthetic_results import not_timed, results


def _points(ax: Axes, colour: str) -> list[tuple[float, float]]:
    """The points of the one line of that colour."""
    (line,) = (line for line in ax.lines if line.get_color() == colour)
    return [(x, y) for x, y in line.get_xydata()]


def test_every_plot_is_drawn_as_png_and_svg_that_name_their_source(tmp_path):
    left_out = draw(results(), tmp_path, "2000-01-01-0000000.json")
    assert left_out == dict.fromkeys(PLOTS)
    for name in PLOTS:
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.info["Source"] == "2000-01-01-0000000.json"
            assert image.size[0] == 1290
        svg = (tmp_path / f"{name}.svg").read_text()
        assert "2000-01-01-0000000.json" in svg
        assert not re.search(r"<dc:date>", svg)


def test_training_speed_is_that_of_the_rows_under_the_limit_of_matrix_products():
    figure = PLOTS["training_speed"](results())
    eager = figure.axes[0]
    expected = {
        made.PARAMETERS[row["case"]["model"]]: row["metrics"]["tokens_per_s"]
        for row in results()["rows"]
        if row["variant"] == made.OURS and row["case"].get("T") == 1024
        and row["case"].get("compile") is False and "B" in row["case"]
    }  # fmt: skip
    assert dict(_points(eager, plot_style.OURS)) == expected
    limits = dict(_points(eager, plot_style.FAINT))
    for model in made.SIZES:
        limit = made.MATMUL_TFLOPS * 1e12 / flops_per_token(PRESETS[model], 1024)
        assert limits[made.PARAMETERS[model]] == pytest.approx(limit)
    in_another_dtype = {**results()["limits"], "matmul_dtype": "float32"}
    figure = PLOTS["training_speed"](results(limits=in_another_dtype))
    assert plot_style.FAINT not in {line.get_color() for line in figure.axes[0].lines}


def test_a_variant_that_failed_is_not_drawn():
    rows = [
        not_timed(row, "failed", "wrong result")
        if row["bench"] == "attention" and row["variant"] == "triton" else row
        for row in results()["rows"]
    ]  # fmt: skip
    figure = PLOTS["attention"](results(rows=rows))
    colours = {line.get_color() for ax in figure.axes for line in ax.lines}
    assert plot_style.OURS not in colours
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "SDPA" in names
    assert "ours" not in names


def test_each_panel_names_its_own_lines():
    """As many names as lines of theirs, a limit aside, though one variant was not compiled."""
    rows = [
        row for row in results()["rows"]
        if not (row["case"].get("compile") and row["variant"] == "nanogpt")
    ]  # fmt: skip
    for plot in ("training_speed", "training_memory"):
        for ax in PLOTS[plot](results(rows=rows)).axes:
            colours = {line.get_color() for line in ax.lines} - {plot_style.FAINT}
            assert {text.get_color() for text in ax.get_legend().get_texts()} == colours


def test_the_copy_rate_is_drawn_beside_the_memory_bound_kernels():
    (ax,) = PLOTS["kernels"](results()).axes
    (limit,) = ax.lines
    assert set(limit.get_xdata()) == {made.COPY_GBPS}


def test_the_gain_of_a_rung_is_over_the_last_one_that_was_measured():
    (ax,) = PLOTS["ladder"](results()).axes
    texts = [text.get_text() for text in ax.texts]
    assert "x 2.93" in texts  # 120 over 41
    assert "x 1.33" in texts  # 560 over 420: the rung between them was skipped
    assert any("skipped: out of memory" in text for text in texts)


@pytest.mark.parametrize(
    ("plot", "missing"),
    [
        ("training_speed", lambda row: row["bench"] == "training"),
        ("training_memory", lambda row: row["case"].get("model") != "gpt2"),
        ("ladder", lambda row: row["case"].get("ladder")),
        ("attention", lambda row: row["case"].get("T") != 1024),
        ("kernels", lambda row: "gbps" in row["metrics"] and row["ours"]),
        ("loss_memory", lambda row: row["case"].get("N") != 8192),
    ],
)
def test_a_plot_without_its_rows_is_left_out_with_the_reason(plot, missing, tmp_path, monkeypatch):
    rows = [row for row in results()["rows"] if not missing(row)]
    monkeypatch.setattr("bench.plot.__main__.PLOTS", {plot: PLOTS[plot]})
    left_out = draw(results(rows=rows), tmp_path, "x.json")
    assert left_out[plot]
    assert not list(tmp_path.iterdir())


def test_a_file_without_rows_is_refused(tmp_path):
    path = tmp_path / "r.json"
    path.write_text(json.dumps(results(rows=[])))
    with pytest.raises(ValueError, match="no rows to draw"):
        main(Arguments(path))
