"""The commands as a user types them: training, resuming, evaluating, generating, mistakes."""

import json
import re
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import gpt2.training.trainer
from gpt2.runs.metrics import read_metrics
from gpt2.tokenizer import Tokenizer
from tests.gpt2.stand_ins import (
    ROOT,
    STORIES,
    curve,
    run_forked,
    run_here,
    start_python,
    wait_for_step,
)  # fmt: skip
from tests.kernels.work_counts import count_work

TRAIN = str(ROOT / "train.py")
SMALL = [
    "--vocab-size", "300", "--n-layer", "1", "--n-head", "2", "--n-embd", "32", "--seq-len", "32",
    "--batch-size", "4", "--log-every", "1", "--sample-tokens", "8", "--device", "cpu",
    "--dtype", "fp32",
]  # fmt: skip
RUN = [
    "--data", "stories.txt", *SMALL, "--steps", "60", "--eval-every", "20", "--grad-accum", "2",
    "--sample-every", "40",
]  # fmt: skip


@pytest.fixture
def typed(workplace, monkeypatch) -> Callable[..., object]:
    """Runs a command in this process, in the workplace, and returns its exit status."""
    return partial(run_here, monkeypatch, workplace)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with a text of 60 documents, and a run trained on it."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "stories.txt").write_text(STORIES, encoding="utf-8")
    done = run_forked(TRAIN, *RUN, "--out", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "\r" not in done.stderr, "a bar for a terminal in a log file"
    (folder / "output.txt").write_text(done.stdout)
    return folder


def test_training_goes_from_text_to_samples(workplace):
    output = (workplace / "output.txt").read_text()
    for part in (
        "parameters (1 layers", "memory, estimated: weights", "attention: sdpa", "perplexity",
        "step     60/60 | train loss", "val loss", "bits per byte",
        "--- greedy", "--- top-k (k = 50)", "--- nucleus (p = 0.9)",
    ):  # fmt: skip
        assert part in output, part
    run = workplace / "run"
    for name in ("metrics.jsonl", "loss.png", "tokenizer.json", "config.json", "result.json"):
        assert (run / name).stat().st_size > 0, name
    losses = [m["val_loss"] for m in read_metrics(run / "metrics.jsonl") if "val_loss" in m]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    result = json.loads((run / "result.json").read_text())
    assert result["test"]["bits_per_byte"] > 0
    assert len(result["samples"]) == 3
    (sample,) = (run / "samples").iterdir()
    assert sample.name == "step-000040.txt"
    for name in result["samples"]:
        assert f"--- {name}\n{result['prompt']}" in sample.read_text(encoding="utf-8")


def test_evaluation_needs_the_run_alone_and_repeats_the_figure_of_training(
    workplace, typed, capsys
):
    assert typed("-m", "gpt2.evaluate", "run", "--json", "--device", "cpu") == 0
    measured = json.loads(capsys.readouterr().out.splitlines()[-1])
    expected = json.loads((workplace / "run" / "result.json").read_text())["test"]
    assert measured["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert measured["tokens"] == expected["tokens"]


def test_an_interrupted_command_resumes_exactly(workplace):
    words = [*RUN, "--out", "broken", "--checkpoint-every", "5"]
    for number, step in ((signal.SIGTERM, 12), (signal.SIGINT, 32)):
        process = start_python(TRAIN, *words, cwd=workplace)
        wait_for_step(process, workplace / "broken", step)
        process.send_signal(number)
        output, _ = process.communicate()
        assert process.returncode == 128 + number
        assert "python train.py --resume broken" in output
        words = ["--resume", "broken"]
    resumed = run_forked(TRAIN, *words, cwd=workplace)
    assert resumed.returncode == 0, resumed.stderr
    assert curve(workplace / "broken") == curve(workplace / "run")


def test_a_run_without_a_checkpoint_is_begun_anew_under_its_name(workplace, typed, capsys):
    words = [TRAIN, *RUN, "--out", "vain"]
    vain = shutil.copytree(workplace / "run", workplace / "vain")
    shutil.rmtree(vain / "checkpoints")
    assert typed(*words) == 2, "it has a result"
    (vain / "result.json").rename(vain / "config.json")
    assert typed(*words) == 2, "the configuration is none of ours"
    shutil.copy(workplace / "run/config.json", vain)
    (vain / "checkpoints/.step-000020.tmp").mkdir(parents=True)
    assert typed(TRAIN, "--resume", "vain") == 2
    assert capsys.readouterr().err.strip().endswith("train anew, with --out vain")
    assert typed(*words) == 0
    assert "vain was begun before and holds no checkpoint" in capsys.readouterr().out
    assert curve(vain) == curve(workplace / "run")
    assert typed(*words) == 2, "now it holds a run"
    assert not list(vain.glob("checkpoints/.*"))


def test_a_finished_run_is_extended_by_a_schedule_of_its_own(workplace, typed, capsys):
    before = curve(workplace / "run")
    for name, more, rates, said in (
        ("longer", [], {before[-1][2]}, "stays"),
        ("lower", ["--lr", "1e-3"], {1e-3, 1e-4}, "falls anew, by half a cosine"),
    ):
        run = shutil.copytree(workplace / "run", workplace / name)
        words = [TRAIN, "--resume", name, "--steps", "80", *more]
        with pytest.MonkeyPatch.context() as patch:  # killed before its first checkpoint
            patch.setattr("gpt2.training.trainer.Trainer.fit", lambda self: signal.SIGTERM)
            assert typed(*words) == 128 + signal.SIGTERM
        assert f"extended after step 60: from there on the learning rate {said}" in (
            capsys.readouterr().out
        )
        assert not (run / "result.json").exists()
        assert typed(TRAIN, "--resume", name, "--steps", "90") == 2
        assert f"and {name} is not: go on with it by --resume {name} alone" in (
            capsys.readouterr().err
        )
        assert typed(TRAIN, "--resume", name) == 0
        made = curve(run)
        assert made[: len(before)] == before
        assert len(made) == 80
        first, last = made[60][2], made[-1][2]
        assert last == pytest.approx(min(rates))
        assert first == pytest.approx(max(rates), rel=0.01)
        assert json.loads((run / "result.json").read_text())["step"] > 60
    assert typed(TRAIN, "--resume", "longer", "--steps", "70") == 2
    assert "longer has taken 80 steps; give more to extend it" in capsys.readouterr().err
    assert typed(TRAIN, "--resume", "longer", "--steps", "81", "--min-lr", "1") == 2
    assert "--min-lr 1 is above --lr" in capsys.readouterr().err
    assert typed(TRAIN, "--resume", "longer", "--steps", "81", "--lr", "1e-3") == 0
    assert len(curve(workplace / "longer")) == 81
    pytest.importorskip("typst")
    assert typed("-m", "gpt2.report", "longer") == 0
    pages = pytest.importorskip("pypdf").PdfReader(workplace / "longer/report.pdf").pages
    text = " ".join(" ".join(page.extract_text() for page in pages).split())
    assert "The run was extended after step 80, from where the steps of this schedule count" in text


def test_a_run_is_not_extended_from_a_checkpoint_before_its_end(workplace, typed, capsys):
    run = shutil.copytree(workplace / "run", workplace / "hurt")
    (run / "checkpoints/step-000060/model.safetensors").write_bytes(b"")
    config = (run / "config.json").read_bytes()
    assert typed(TRAIN, "--resume", "hurt", "--steps", "80") == 2
    assert "the last checkpoint of hurt is damaged" in capsys.readouterr().err
    assert (run / "config.json").read_bytes() == config
    assert typed(TRAIN, "--resume", "hurt") == 0
    assert curve(run) == curve(workplace / "run")


def test_our_kernels_train_to_the_end_with_the_losses_of_pytorchs(workplace, typed, capsys):
    """Interpreted, which is said: the norms, the MLP, the loss and attention, all of them ours."""
    (workplace / "short.txt").write_text(STORIES[:6000], encoding="utf-8")
    words = [*SMALL, "--data", "short.txt", "--steps", "2", "--eval-every", "2"]
    words += ["--grad-accum", "1"]
    curves = []
    for out, kernels in {"fused": "triton", "plain": "torch"}.items():
        attn = "triton" if kernels == "triton" else "sdpa"
        choice = ["--kernels", kernels, "--attn", attn, "--out", out, "--eval-tokens", "64"]
        with count_work() as work:
            assert typed(TRAIN, *words, *choice) == 0
        launched = [launch.kernel for launch in work.launches].count("attention_fwd_kernel")
        said = f"kernels: norms {kernels}, MLP activation {kernels}, head and loss {kernels}"
        output = capsys.readouterr().out
        assert said in output
        assert "more than the run has, and never reaches 0." in output
        pace = re.search(r"our kernels are interpreted .* s a step, [\d.]+ minutes for 2;", output)
        assert bool(pace) == (kernels == "triton")
        # Two micro-batches to try, one for each of the two steps, none to validate or score.
        assert launched == (4 if kernels == "triton" else 0)
        curves.append([m["loss"] for m in read_metrics(workplace / out / "metrics.jsonl")])
        assert json.loads((workplace / out / "result.json").read_text())["test"]["perplexity"] > 1
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)


def test_a_run_stays_within_documents_wherever_it_is_opened(workplace, typed, capsys):
    words = [*SMALL, "--data", "stories.txt", "--steps", "4", "--eval-every", "4"]
    words += ["--seq-len", "300", "--attend", "within-documents", "--restart-positions"]
    curves = []
    for attn in ("naive", "sdpa"):
        assert typed(TRAIN, *words, "--attn", attn, "--out", f"within-{attn}") == 0
        curves.append([m["loss"] for m in read_metrics(workplace / f"within-{attn}/metrics.jsonl")])
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)
    trained = json.loads((workplace / "within-sdpa" / "result.json").read_text())["test"]
    assert typed("-m", "gpt2.evaluate", "within-sdpa", "--device", "cpu") == 0
    assert f"{trained['perplexity']:.2f}" in capsys.readouterr().out
    assert typed("-m", "gpt2.generate", "within-sdpa", "--max-tokens", "4") == 0
    assert typed("-m", "gpt2.export", "within-sdpa", "--out", "never") == 2
    assert "attend=within-documents cannot be written in GPT-2's format" in capsys.readouterr().err
    # Weights that were trained on everything go on within documents.
    words = ["--init-from", "run", "--data", "stories.txt", "--steps", "1", "--out", "narrowed"]
    assert typed(TRAIN, *words, "--attend", "within-documents", "--device", "cpu") == 0
    kept = json.loads((workplace / "narrowed" / "config.json").read_text())
    assert "within-documents" in json.dumps(kept)


def test_a_run_on_token_ids_knows_their_type_when_it_goes_on_and_is_scored(
    workplace, typed, capsys
):
    """What nanoGPT has of a text is trained on as the text itself, to the same losses."""
    tokenizer = Tokenizer.load(workplace / "run/tokenizer.json")
    (workplace / "ids").mkdir()
    for split, text in {"train": STORIES, "val": STORIES[:2000]}.items():
        documents = [text.strip() for text in text.split("<|endoftext|>") if text.strip()]
        ids = [id for text in documents for id in (*tokenizer.encode(text), tokenizer.eot_id)]
        np.array(ids, dtype="<u2").tofile(workplace / f"ids/{split}.bin")
        for name in {split, "test"}:
            (workplace / f"ids/{name}.txt").write_text(text, encoding="utf-8")
    words = [TRAIN, *SMALL, "--steps", "4", "--eval-every", "2", "--checkpoint-every", "2"]
    words += ["--tokenizer", "run", "--eval-tokens", "500"]
    assert typed(*words, "--data", "ids/*.txt", "--out", "by-text") == 0
    assert typed(*words, "--data", "ids/*.bin", "--token-type", "uint16", "--out", "by-ids") == 0
    assert curve(workplace / "by-ids") == curve(workplace / "by-text")
    for name in ("result.json", "checkpoints/step-000004"):
        path = workplace / "by-ids" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert typed(TRAIN, "--resume", "by-ids") == 0
    assert curve(workplace / "by-ids") == curve(workplace / "by-text")
    capsys.readouterr()
    scores = []
    for run in ("by-ids", "by-text"):
        assert typed("-m", "gpt2.evaluate", run, "--split", "valid", "--json") == 0
        scores.append(json.loads(capsys.readouterr().out))
    assert scores[0]["bits_per_byte"] == scores[1]["bits_per_byte"] > 0
    assert typed("-m", "gpt2.evaluate", "by-ids", "--task", "wikitext") == 2
    assert "ids holds token ids, and words are counted in text" in capsys.readouterr().err


def test_a_run_that_diverged_is_not_sampled_and_its_best_checkpoint_is(typed, capsys):
    rate = gpt2.training.trainer.learning_rate

    def wild(step, **options):
        return 1e12 if step >= 6 else rate(step, **options)

    words = ["--data", "stories.txt", *SMALL, "--steps", "8", "--eval-every", "4"]
    words += ["--checkpoint-every", "4", "--grad-accum", "1"]
    message = (
        "error: the run in wild has diverged: the validation loss after its last step is not "
        "finite, so it is neither scored nor sampled; the best checkpoint, step 4, is what "
        "--init-from wild takes. Train anew with a lower --lr, or --dtype fp32"
    )
    for begin in ([*words, "--out", "wild"], ["--resume", "wild"]):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("gpt2.training.trainer.learning_rate", wild)
            assert typed(TRAIN, *begin) == 2
        assert message in capsys.readouterr().err
        assert not Path("wild/result.json").exists()
    for strategy in ("top-p", "greedy"):
        last = ["-m", "gpt2.generate", "wild", "--strategy", strategy, "--checkpoint"]
        assert typed(*last, "last") == 2
        assert "take an earlier --checkpoint of the run" in capsys.readouterr().err
        assert typed(*last, "4", "--max-tokens", "2") == 0
    again = ["--init-from", "wild", "--out", "tame", "--steps", "1", "--sample-tokens", "2"]
    assert typed(TRAIN, "--data", "stories.txt", *again, "--lr", "1e-4") == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((TRAIN, "--data", "absent.txt"), "absent.txt"),
        ((TRAIN, "--preset", "gpt3"), "unknown preset 'gpt3': choose one of demo, mini, gpt2"),
        ((TRAIN, "--data", "stories.txt", "--out", "run"), "already holds a run"),
        ((TRAIN, "--resume", "nowhere"), "is not a run folder"),
        ((TRAIN, "--resume", "run", "--lr", "1"), "--lr 1.0 cannot be changed with --resume"),
        ((TRAIN, "--steps", "5", "--epochs", "1"), "give one of them"),
        ((TRAIN, "--device", "cuda:9"), "--device cuda:9"),
        (
            (TRAIN, "--data", "stories.txt", "--attn", "flash", "--dropout", "0.1", *SMALL),
            "non-zero dropout; use --attn sdpa",
        ),
        ((TRAIN, "--data", "stories.txt", "--steps", "0"), "--steps must be at least 1, got 0"),
        ((TRAIN, "--clip", "-1"), "--clip must be at least 0 (0: no clipping), got -1.0"),
        ((TRAIN, "--min-lr", "1", "--lr", "0.1"), "--min-lr 1 is above --lr 0.1: lower it"),
        ((TRAIN, "--n-head", "5", "--data", "absent.txt"), "n_embd=192 cannot be split over n_he"),
        (
            (TRAIN, "--vocab-size", "256", "--data", "absent.txt"),
            "--vocab-size must be at least 257",
        ),
        ((TRAIN, "--data", "stories.txt", *SMALL, "--seq-len", "50000"), "training text is too sh"),
        (("-m", "gpt2.data.prepare", "--data", "none.txt"), "error: --data none.txt: no such file"),
        (("-m", "gpt2.report", "."), "is not a run folder"),
        (
            ("-m", "gpt2.compare_sizes", "--sizes", "1x8", "--tokens", "9", "--out", "sizes"),
            "error: a comparison needs at least two sizes",
        ),
        (("-m", "gpt2.evaluate", "."), "has no config.json: give a folder of a run"),
        (("-m", "gpt2.generate", "run", "--checkpoint", "77"), "no checkpoint '77'"),
        (("-m", "gpt2.generate", "run", "--top-p", "2"), "--top-p must be above 0 and at most 1"),
        (
            ("-m", "gpt2.generate", "run", "--top-k", "50"),
            "--top-k means nothing to --strategy top-p: leave it out, or choose top-k",
        ),
        (
            ("-m", "gpt2.generate", "run", "--strategy", "greedy", "--temperature=1"),
            "--temperature means nothing to --strategy greedy",
        ),
    ],
    ids=lambda value: " ".join(value[1:])[:40] if isinstance(value, tuple) else None,
)
def test_a_mistake_is_one_sentence_and_status_2(workplace, typed, capsys, words, message):
    before = set(workplace.rglob("*"))
    assert typed(*words) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors
    new = {p for p in set(workplace.rglob("*")) - before if "data" not in p.parts}
    assert not new, "a refused command leaves nothing behind"
