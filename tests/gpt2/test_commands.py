"""The commands as a user types them: training, resuming, evaluating, generating, mistakes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpt2.runs.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "--vocab-size", "300", "--n-layer", "1", "--n-head", "2", "--n-embd", "32", "--seq-len", "32",
    "--batch-size", "4", "--log-every", "1", "--sample-tokens", "8", "--device", "cpu",
    "--dtype", "fp32",
]  # fmt: skip
BF16 = ("--dtype", "bf16")  # the last one given counts


def _command(*words: str) -> list[str]:
    return [sys.executable, *words]


def _run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        _command(*words), cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with a text of 60 documents, and a run trained on it."""
    folder = tmp_path_factory.mktemp("work")
    documents = [
        f"Story {i}. The {'cat' if i % 3 else 'dog'} saw {i} birds, and then it ran home.\n" * 6
        for i in range(60)
    ]
    (folder / "stories.txt").write_text("<|endoftext|>\n".join(documents), encoding="utf-8")
    done = _run(
        folder, str(ROOT / "train.py"), "--data", "stories.txt", *SMALL, "--out", "run",
        "--steps", "30", "--eval-every", "10", "--grad-accum", "2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder / "output.txt").write_text(done.stdout)
    return folder


def test_training_goes_from_text_to_samples(workplace):
    output = (workplace / "output.txt").read_text()
    for part in (
        "parameters (1 layers",
        "memory, estimated: weights",
        "attention: sdpa",
        "step     30/30 | train loss",
        "val loss",
        "perplexity",
        "bits per byte",
        "--- greedy",
        "--- top-k (k = 50)",
        "--- nucleus (p = 0.9)",
    ):
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


def test_evaluation_needs_the_run_alone_and_repeats_the_figure_of_training(workplace):
    done = _run(workplace, "-m", "gpt2.evaluate", "run", "--json", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout.splitlines()[-1])
    expected = json.loads((workplace / "run" / "result.json").read_text())["test"]
    assert measured["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert measured["tokens"] == expected["tokens"]


def test_generation_streams_the_same_text_for_the_same_seed(workplace):
    words = ("-m", "gpt2.generate", "run", "--prompt", "Story 7. The", "--max-tokens", "12")
    first, second = _run(workplace, *words), _run(workplace, *words)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("Story 7. The")
    assert len(first.stdout.strip()) > len("Story 7. The")
    assert first.stdout == second.stdout


def _start(folder: Path, out: str, steps: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        _command(
            str(ROOT / "train.py"), "--data", "stories.txt", *SMALL, "--out", out,
            "--steps", str(steps), "--eval-every", "100", "--checkpoint-every", "5",
        ),
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )  # fmt: skip


def _wait_for_step(run: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        metrics = run / "metrics.jsonl"
        if metrics.exists() and len(metrics.read_text().splitlines()) >= step:
            return
        time.sleep(0.02)
    raise TimeoutError(f"{run} never came to step {step}")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGKILL"])
def test_an_interrupted_command_resumes_exactly(workplace, name):
    number = signal.Signals[name]
    steps = 60
    straight = workplace / "straight"
    if not straight.exists():
        assert _start(workplace, "straight", steps).wait() == 0
    out = f"broken-{name}"
    process = _start(workplace, out, steps)
    _wait_for_step(workplace / out, 12)
    process.send_signal(number)
    output, _ = process.communicate()
    if number == signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert process.returncode == 128 + number
        assert f"python train.py --resume {out}" in output
    resumed = _run(workplace, str(ROOT / "train.py"), "--resume", out)
    assert resumed.returncode == 0, resumed.stderr

    def curve(folder):
        metrics = read_metrics(folder / "metrics.jsonl")
        return [(m["step"], m["loss"], m["grad_norm"]) for m in metrics]

    assert curve(workplace / out) == curve(straight)


def test_our_kernels_train_to_the_end_with_the_losses_of_pytorchs(workplace):
    """By Triton's interpreter: the norms, the MLP, the loss and attention, all of them ours."""
    words = [*SMALL, "--data", "stories.txt", "--steps", "4", "--eval-every", "4"]
    curves = []
    for out, kernels in {"fused": "triton", "plain": "torch"}.items():
        attn = "triton" if kernels == "triton" else "sdpa"
        choice = ["--kernels", kernels, "--attn", attn, "--out", out, "--eval-tokens", "64"]
        done = _run(workplace, str(ROOT / "train.py"), *words, *choice)
        assert done.returncode == 0, done.stderr
        said = f"kernels: norms {kernels}, MLP activation {kernels}, head and loss {kernels}"
        assert said in done.stdout
        curves.append([m["loss"] for m in read_metrics(workplace / out / "metrics.jsonl")])
        assert json.loads((workplace / out / "result.json").read_text())["test"]["perplexity"] > 1
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train.py", "--data", "absent.txt"), "absent.txt"),
        (("train.py", "--preset", "gpt3"), "unknown preset 'gpt3': choose one of demo, mini, gpt2"),
        (("train.py", "--data", "stories.txt", "--out", "run"), "already holds a run"),
        (("train.py", "--resume", "nowhere"), "is not a run folder"),
        (("train.py", "--resume", "run", "--lr", "1"), "--lr 1.0 cannot be changed with --resume"),
        (("train.py", "--steps", "5", "--epochs", "1"), "give one of them"),
        (("train.py", "--device", "cuda:9"), "--device cuda:9"),
        (
            ("train.py", "--data", "stories.txt", "--attn", "flash", "--window", "8", *SMALL),
            "--attn flash: PyTorch's FlashAttention kernel has no sliding window",
        ),
        (
            ("train.py", "--data", "stories.txt", "--norm-kernel", "triton", *SMALL, *BF16),
            "--norm-kernel triton: Triton's interpreter computes bf16 wrongly",
        ),
        (("train.py", "--data", "stories.txt", "--steps", "0"), "--steps must be at least 1"),
        (
            ("train.py", "--data", "stories.txt", *SMALL, "--seq-len", "50000"),
            "the training text is too short",
        ),
        (("-m", "gpt2.evaluate", "."), "has no config.json: give a folder of a run"),
        (("-m", "gpt2.generate", "run", "--checkpoint", "77"), "no checkpoint '77'"),
        (("-m", "gpt2.generate", "run", "--top-p", "2"), "top-p must be in (0, 1]"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else None,
)
def test_a_mistake_is_one_sentence_and_status_2(workplace, words, message):
    before = set(workplace.rglob("*"))
    if words[0] == "train.py":
        words = (str(ROOT / "train.py"), *words[1:])
    done = _run(workplace, *words)
    assert done.returncode == 2, done.stdout
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    new = {p for p in set(workplace.rglob("*")) - before if "data" not in p.parts}
    assert not new, "a refused command leaves nothing behind"


def test_a_second_process_in_one_run_folder_is_refused(workplace):
    process = _start(workplace, "busy", 100_000)
    _wait_for_step(workplace / "busy", 6)
    second = _run(workplace, str(ROOT / "train.py"), "--resume", "busy")
    process.kill()
    process.wait()
    assert second.returncode == 2
    assert "another process is training in busy" in second.stderr


def test_help_names_every_option_with_its_meaning(workplace):
    done = _run(workplace, str(ROOT / "train.py"), "--help")
    assert done.returncode == 0
    options = (
        "data vocab-size tokenizer preset attn norm norm-position mlp positions tie dropout window "
        "steps epochs batch-size seq-len grad-accum lr min-lr warmup-steps weight-decay beta1 "
        "beta2 clip eval-every checkpoint-every out resume seed device dtype compile optimizer "
        "kernels norm-kernel mlp-kernel loss-kernel"
    )
    for option in options.split():
        assert f"--{option} " in done.stdout.replace(",", " "), option
