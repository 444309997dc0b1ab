"""Sizes compared on the same tokens, as a user types it: figures, resumption, mistakes."""

import dataclasses
import json
import math
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tyro

from gpt2.common.files import lock
from gpt2.compare_sizes.__main__ import Arguments, main
from gpt2.compare_sizes.plan import plan_runs
from gpt2.config import PRESETS, TrainConfig, settle
from gpt2.data.prepare import prepare
from gpt2.evaluate.perplexity import evaluate
from gpt2.runs.run import load_run
from gpt2.training.estimate import flops_per_token
from tests.gpt2.stand_ins import STORIES, curve, run_forked, run_python, start_python, wait_for_step

STEPS = 600  # long enough for a signal to arrive in time on a fast machine
SMALL = [
    *("--data", "stories.txt", "--vocab-size", "300", "--seq-len", "16", "--batch-size", "4"),
    *("--tokens", str(STEPS * 16 * 4 + 5), "--device", "cpu", "--dtype", "fp32"),
    *("--sample-tokens", "6", "--prompt", "Story 7.", "--prompt", "", "--sizes", "2x16x2", "1x8"),
]


COMMAND = ["-m", "gpt2.compare_sizes", *SMALL, "--out"]


def _arguments(**changes: Any) -> Arguments:
    return dataclasses.replace(tyro.cli(Arguments, args=[*SMALL, "--out", "new"]), **changes)


def _copy(source: Path, target: Path) -> None:
    """Copy a comparison as if it had been made under the other name."""
    shutil.copytree(source, target)
    for config in target.rglob("config.json"):
        old, new = f'"out": "{source.name}/', f'"out": "{target.name}/'
        config.write_text(config.read_text().replace(old, new))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with a text, and the comparison of two sizes on it."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "stories.txt").write_text(STORIES, encoding="utf-8")
    done = run_forked(*COMMAND, "out", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "output.txt").write_text(done.stdout)
    return folder


def test_figures_are_those_of_the_runs(workplace):
    comparison = json.loads((workplace / "out/sizes.json").read_text())
    assert [row["name"] for row in comparison["rows"]] == ["1x8", "2x16x2"], "smallest first"
    tokenizers = set()
    for row in comparison["rows"]:
        folder = workplace / "out" / row["name"]
        tokenizers.add((folder / "tokenizer.json").read_bytes())
        run = load_run(folder, device="cpu")
        shape = (row["n_layer"], row["n_embd"], row["n_head"])
        assert shape == (run.model.config.n_layer, run.model.config.n_embd, run.model.config.n_head)
        assert row["tokens"] == STEPS * 16 * 4
        assert row["flops"] == row["tokens"] * flops_per_token(run.model.config, 16)
        assert row["seconds"] * row["tokens_per_s"] == pytest.approx(row["tokens"])
        losses = [loss for _, loss in row["val_curve"]]
        assert len(losses) == 10
        assert row["val_curve"][-1][0] == row["tokens"]
        assert row["val_loss"] == min(losses)
        data = prepare(
            str(workplace / "stories.txt"),
            tokenizer=str(folder / "tokenizer.json"),
            cache_dir=workplace / "data",
        )
        test = evaluate(run.model, data.splits["test"], bos_id=run.tokenizer.eot_id, batch_size=4)
        assert row["test_loss"] == pytest.approx(test.loss, rel=1e-5)
        assert row["test_perplexity"] == pytest.approx(math.exp(test.loss), rel=1e-5)
        assert row["test_bits_per_byte"] == pytest.approx(test.bits_per_byte, rel=1e-5)
        assert set(row["samples"]) == {"Story 7.", ""}
        assert all(row["samples"].values())
    assert len(tokenizers) == 1, "one vocabulary for all"
    assert comparison["vocab_size"] == 300


def test_table_report_and_plots_show_every_size(workplace):
    report = (workplace / "out/sizes.md").read_text()
    terminal = (workplace / "output.txt").read_text()
    for row in json.loads((workplace / "out/sizes.json").read_text())["rows"]:
        assert f"model: {row['name']}, {row['parameters']:,} parameters" in terminal
        for cell in (f"{row['parameters']:,}", f"{row['test_perplexity']:.2f}"):
            assert cell in report
            assert cell in terminal
    for name in ("loss_tokens", "loss_compute"):
        assert (workplace / f"out/{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "</svg>" in (workplace / f"out/{name}.svg").read_text()
        assert f"({name}.svg)" in report


def test_the_same_command_again_trains_nothing_and_says_the_same(workplace, monkeypatch, capfd):
    monkeypatch.chdir(workplace)
    before = (workplace / "out/sizes.json").read_bytes()
    times = {p: p.stat().st_mtime_ns for p in (workplace / "out").rglob("metrics.jsonl")}
    main(_arguments(out="out"))
    assert capfd.readouterr().out.count("is done already") == 2
    assert (workplace / "out/sizes.json").read_bytes() == before
    assert {p: p.stat().st_mtime_ns for p in times} == times


def test_an_interrupted_comparison_goes_on_bit_for_bit(workplace):
    out = workplace / "broken"
    second = out / "1x8"
    _copy(workplace / "out", out)
    shutil.rmtree(second / "checkpoints")  # nothing was saved: it is trained anew
    for name in ("result.json", "metrics.jsonl"):
        (second / name).unlink()
    # Ignored in what a shell starts in the background, it would be ignored by the command too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name, lines in {"SIGINT": 5, "SIGKILL": 40}.items():
        process = start_python(*COMMAND, "broken", cwd=workplace)
        wait_for_step(process, second, lines)
        number = signal.Signals[name]
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode == (-number if name == "SIGKILL" else 128 + number)
        with lock(second / ".lock", waiting="the training ends"):
            assert not (second / "result.json").exists(), "it was over before the signal came"
    done = run_forked(*COMMAND, "broken", cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert "resumed broken/1x8 after step" in done.stdout
    assert curve(second) == curve(workplace / "out/1x8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"presets": ("gpt3", "demo")}, "unknown preset 'gpt3': choose one of demo, mini, gpt2"),
        ({"sizes": ("1x8", "small")}, "--sizes small: write layers x width"),
        ({"sizes": ("1x8", "1x8")}, "at least two sizes, all different"),
        ({"sizes": ("1x8",)}, "at least two sizes"),
        ({"sizes": ("1x8", "1x9x2")}, "size 1x9x2: n_embd=9 cannot be split over n_head=2"),
        ({"sizes": ("1x8", "0x8")}, "size 0x8: n_layer must be at least 1"),
        ({"tokens": 63}, "--tokens 63 is less than one step of 64 tokens"),
        ({"lr": (0.1, 0.2, 0.3)}, "--lr gives 3 rates for 2 sizes"),
        ({"data": "absent.txt"}, "absent.txt"),
        ({"seq_len": 50000, "tokens": 1000000}, "the training text is too short"),
        ({"prompt": ("a b c d e f g " * 9,)}, "the models will see 16: shorten it"),
        ({"device": "cuda:9"}, "--device cuda:9"),
        ({"out": "stories.txt"}, "--out stories.txt is a file: name a folder"),
        ({"out": "FULL"}, "holds something else than a comparison of sizes (thesis.txt)"),
        ({"out": "out/1x8"}, "--out out/1x8 holds something else than a comparison"),
        ({"out": "out", "seed": 7}, "out/2x16x2 was trained with seed 1337 and not 7: give"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_a_mistake_is_refused_before_anything_is_trained(
    workplace, tmp_path, monkeypatch, changes, message
):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").touch()
    if changes.get("out") == "FULL":
        changes = changes | {"out": str(tmp_path / "full")}
    before = sorted(p for p in workplace.rglob("*") if "data" not in p.parts)
    monkeypatch.chdir(workplace)
    with pytest.raises(ValueError, match=re.escape(message)):
        main(_arguments(**changes))
    assert sorted(p for p in workplace.rglob("*") if "data" not in p.parts) == before


def test_a_text_that_has_changed_is_refused(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    text = Path("stories.txt").read_text()
    Path("stories.txt").write_text(text.replace("birds", "beetles"))
    try:
        with pytest.raises(ValueError, match=re.escape("is not the tokenizer of this text")):
            main(_arguments(out="out"))
    finally:
        Path("stories.txt").write_text(text)


def test_two_comparisons_in_one_folder_are_refused(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    with (
        lock(Path("out/.lock")),
        pytest.raises(ValueError, match="another process is training in out"),
    ):
        main(_arguments(out="out"))


def test_runs_differ_in_size_and_learning_rate_alone(tmp_path):
    base = settle(TrainConfig(), "mini")
    given = {"presets": ["mini", "demo"], "tokens": 10**7, "out": tmp_path}
    runs = plan_runs(base, shapes=["4x128", "2x100x5"], **given)
    own = {"preset", "n_layer", "n_head", "n_embd", "lr", "min_lr", "out"}
    settings = [dataclasses.asdict(run) for run in runs.values()]
    shared = [{name: each[name] for name in each.keys() - own} for each in settings]
    assert all(settings == shared[0] for settings in shared)
    assert shared[0]["steps"] == 10**7 // (16 * 2 * 256)
    assert runs["4x128"].n_head == 2, "heads of 64"
    assert runs["2x100x5"].n_head == 5
    rates = {name: run.lr for name, run in runs.items()}
    widths = {"mini": 384, "demo": PRESETS["demo"].n_embd, "4x128": 128, "2x100x5": 100}
    assert rates == pytest.approx({name: base.lr * 384 / w for name, w in widths.items()})
    asked = plan_runs(base, shapes=[], lr=[0.2, 0.1], **given)
    assert [run.lr for run in asked.values()] == [0.2, 0.1]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_the_process_own():
    """The system's own figure for a child, ru_maxrss, begins at the peak of its parent."""
    big = np.ones(100_000_000)  # 800 MB
    script = (
        "import sys, torch; from gpt2.training.machine import peak_memory\n"
        "small = peak_memory(torch.device('cpu'))[0]; del small\n"
        "first = peak_memory(torch.device('cpu'))[0]; x = torch.ones(150_000_000); del x\n"
        "print(first, peak_memory(torch.device('cpu'))[0])"
    )
    done = run_python("-c", script)
    assert done.returncode == 0, done.stderr
    first, second = map(int, done.stdout.split())
    assert first < big.nbytes
    assert second >= first + 500_000_000
