"""From a text to a submission by one command, and on after every interruption."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

import gpt2.assignment.plan
import gpt2.compare_decoding.__main__
import gpt2.compare_sizes.__main__
from gpt2.assignment.picture import take_picture
from gpt2.assignment.plan import LADDER, plan_shape
from gpt2.config import TrainConfig
from gpt2.training.run_training import run_training
from tests.gpt2.stand_ins import ROOT, STORIES, run_here

OPTIONS = ["--minutes", "0.01", "--vocab-size", "300", "--device", "cpu", "--author", "A. Student"]
COMMAND = ["-m", "gpt2.assignment", "--data", "stories.txt", *OPTIONS]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("assignment")
    (folder / "stories.txt").write_text(STORIES, encoding="utf-8")
    for name in ("train.py", "gpt2", "kernels"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.fixture
def typed(place, monkeypatch) -> Callable[..., object]:
    """Runs a command here, on tiny sizes, each in this process, where there is no browser."""
    monkeypatch.setattr(gpt2.assignment.plan, "LADDER", ("1x4", "1x8", "1x16"))
    monkeypatch.setattr(gpt2.compare_sizes.__main__, "train", run_training)
    monkeypatch.setattr(gpt2.assignment.picture.shutil, "which", lambda name: None)
    return partial(run_here, monkeypatch, place)


def test_one_command_makes_it_all_and_goes_on_after_each_interruption(
    place, typed, monkeypatch, capsys
):
    pytest.importorskip("typst")
    trained = []

    def killed_in_the_second(config: TrainConfig) -> None:
        trained.append(config.out)
        if len(trained) == 2:
            raise KeyboardInterrupt
        run_training(config)

    def killed(arguments: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpt2.compare_sizes.__main__, "train", killed_in_the_second)
        assert typed(*COMMAND) == 130
        patch.setattr(gpt2.compare_decoding.__main__, "main", killed)
        assert typed(*COMMAND) == 130
    assert trained == [f"submission/sizes/{name}" for name in ("1x4", "1x8", "1x8", "1x16")]
    assert json.loads((place / "submission/plan.json").read_text())["done"] == [
        "sizes", "evaluation",
    ]  # fmt: skip
    assert typed(*COMMAND) == 0
    output = capsys.readouterr().out
    assert output.count("plan: train 1x4 1x8 1x16 (layers x width) on 40,960 tokens each") == 3
    assert output.count("no plan fits what is left of 0.01 minutes: this is the smallest") == 1
    assert output.count("no picture of the demo page: there is no Chromium or Chrome here") == 1
    page = (place / "submission/README.md").read_text()
    scored = json.loads((place / "submission/evaluation.json").read_text())
    own = json.loads((place / "submission/sizes/1x16/result.json").read_text())["test"]
    for score in (scored, own):
        assert f"| {score['perplexity']:.2f} | {score['bits_per_byte']:.4f} |" in page
    for name in ("report.pdf", "decoding/decoding.md", "sizes/sizes.md", "plan.json"):
        assert f"[{name}]({name})" in page
        assert (place / "submission" / name).stat().st_size > 0
    assert "demo.png" not in page
    pypdf = pytest.importorskip("pypdf")
    report = pypdf.PdfReader(place / "submission/report.pdf")
    text = "\n".join(p.extract_text() for p in report.pages)
    assert len(report.pages) <= 5
    for part in ("A. Student", "Comparison of sizes", "greedy", "top-k", "top-p"):
        assert part in text, part
    assert typed(*COMMAND, "--seed", "2") == 2
    assert "was begun with --seed 1337 and not 2: give the same" in capsys.readouterr().err
    assert typed(*COMMAND, "--out", "gpt2") == 2
    assert "holds something else" in capsys.readouterr().err
    assert not (place / "gpt2/.lock").exists(), "nothing is left in a folder that is refused"


def test_the_notebook_runs_the_same_command(place, typed, monkeypatch):
    """On the folder of the test before, which is finished: it shows what lies there."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    if not (place / "submission/README.md").exists():
        pytest.skip("needs the submission of the test before")
    words = ["--repository", "https://example.com/o'n.git", "--data", "stories.txt"]
    assert typed("-m", "gpt2.assignment.notebook", *words, "--minutes", "0.01") == 0
    book = nbformat.read(place / "assignment.ipynb", as_version=4)
    nbformat.validate(book)
    assert """git clone --depth 1 'https://example.com/o'"'"'n.git' code""" in book.cells[1].source
    book.cells[2].source += f" {' '.join(OPTIONS[2:-1])} 'A. Student'"
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    nbclient.NotebookClient(book, resources={"metadata": {"path": str(place)}}).execute()
    shown = json.dumps([cell.outputs for cell in book.cells[2:]])
    for part in ("done in", "image/png", "# GPT-2 on stories by A. Student"):
        assert part in shown, part
    assert (place / "submission.zip").stat().st_size > 0


def test_more_time_is_a_larger_model_and_never_more_than_the_time(monkeypatch):
    """On a machine of 1e11 operations a second, on a text of 10 million tokens."""
    splits = {"train": range(10_000_000), "test": range(100_000)}
    speed = 1e11

    def pace(settings, prepared):
        return 6 * (12 * settings.n_layer * settings.n_embd**2 + 32000 * settings.n_embd) / speed

    monkeypatch.setattr(gpt2.assignment.plan, "_pace", pace)
    chosen = []
    for minutes in (0.1, 5, 30, 240, 10_000):
        asked = TrainConfig(device="cpu", out="out")
        shape = plan_shape(asked, SimpleNamespace(splits=splits), seconds=60 * minutes)
        chosen.append(LADDER.index(shape.sizes[-1]))
        assert len(shape.sizes) == 3
        assert shape.tokens <= 40_000_000
        if minutes >= 5:
            assert shape.minutes <= minutes
        if 5 <= minutes <= 240:
            assert shape.tokens == 40_000_000 // 2048 * 2048 or shape.minutes > 0.6 * minutes
    assert chosen == sorted(chosen)
    assert chosen[0] == 2
    assert len(set(chosen)) >= 3


def test_the_picture_shows_the_page(tmp_path):
    pytest.importorskip("gradio")
    if not shutil.which("chromium"):
        pytest.skip("needs chromium")
    from matplotlib.image import imread

    take_picture(ROOT / "gpt2/pretrained_demo", "Once", tmp_path / "demo.png", device="cpu")
    colours = imread(tmp_path / "demo.png")[:, :, :3]
    assert colours.shape == (950, 1300, 3)
    assert 0.002 < (colours.mean(axis=2) < 0.5).mean() < 0.5, "dark text on a light page"
