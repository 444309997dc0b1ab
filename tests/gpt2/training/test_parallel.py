"""Several processes train one model as one process does: on a CPU, over gloo.

They are forked, as torchrun starts them but without the seconds in which each imports PyTorch.
torchrun itself ends them all after a mistake here, and in the campaign of faults after a kill.
"""

import json
import socket
from pathlib import Path

import pytest
import torch

from gpt2.common.distributed import World
from gpt2.config import TrainConfig, settle
from gpt2.evaluate.perplexity import shard_windows
from gpt2.runs.metrics import read_metrics
from gpt2.training.parallel import check_parallel
from tests.gpt2.stand_ins import ROOT, STORIES, curve, run_forked, run_python

SETTINGS = [
    *("--vocab-size", "300", "--n-layer", "2", "--n-head", "2", "--n-embd", "32"),
    *("--seq-len", "32", "--batch-size", "4", "--grad-accum", "3", "--optimizer", "muon"),
    *("--lr", "3e-3", "--steps", "8", "--eval-every", "4", "--checkpoint-every", "4"),
    *("--log-every", "1", "--sample-tokens", "8", "--device", "cpu", "--dtype", "fp32"),
]


def train(folder: Path, *words: str, processes: int = 1) -> str:
    """Run train.py, which must succeed in all processes; return what they print."""
    with socket.create_server(("localhost", 0)) as server:
        port = str(server.getsockname()[1])
    place = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    ranks = [place | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    done = run_forked("train.py", *words, cwd=folder, ranks=ranks)
    said = done.stdout + done.stderr
    assert done.returncode == ([0] * processes if processes > 1 else 0), said
    return said


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with a text, and the run of one process."""
    folder = tmp_path_factory.mktemp("parallel")
    (folder / "stories.txt").write_text(STORIES, encoding="utf-8")
    train(folder, "--data", "stories.txt", *SETTINGS, "--out", "alone")
    return folder


def _assert_as_alone(folder: Path, out: str) -> None:
    got, alone = ([x for m in curve(folder / run) for x in m] for run in (out, "alone"))
    assert got == pytest.approx(alone, rel=2e-5)
    results = [json.loads((folder / run / "result.json").read_text()) for run in (out, "alone")]
    assert results[0]["test"]["loss"] == pytest.approx(results[1]["test"]["loss"], rel=2e-5)


@pytest.mark.parametrize(
    ("mode", "processes", "options"),
    [("ddp", 2, ()), ("ddp", 4, ("--recompute", "block")), ("fsdp", 4, ("--recompute", "block"))],
)
def test_processes_together_give_the_losses_of_one(workplace, mode, processes, options):
    out = f"{mode}-{processes}"
    words = ["--data", "stories.txt", *SETTINGS, "--out", out, "--parallel", mode, *options]
    said = train(workplace, *words, processes=processes)
    assert said.count("done in") == 1, "one process speaks"
    _assert_as_alone(workplace, out)


def test_a_run_goes_on_with_another_number_of_processes(workplace):
    """Cut over two processes it gives the losses of one, and goes on whole in one from step 4."""
    words = ["--data", "stories.txt", *SETTINGS, "--out", "moved", "--parallel", "fsdp"]
    train(workplace, *words, processes=2)
    _assert_as_alone(workplace, "moved")
    (workplace / "moved/checkpoints/step-000008").rename(workplace / "dropped")
    said = train(workplace, "--resume", "moved", "--parallel", "ddp")
    assert "resumed moved after step 4" in said
    _assert_as_alone(workplace, "moved")


def test_the_largest_logits_are_those_of_all_processes(workplace):
    words = ["--attn", "triton", "--log-attention", "--steps", "1", "--warmup-steps", "0"]
    found = []
    for processes in (1, 2):
        out = f"watched-{processes}"
        train(
            workplace,
            *("--data", "stories.txt", *SETTINGS, "--grad-accum", "1", *words, "--out", out),
            processes=processes,
        )
        (metrics,) = read_metrics(workplace / out / "metrics.jsonl")
        found.append({n: x for n, x in metrics.items() if n.startswith("max_logit")})
    assert len(found[0]) == 5
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_one_mistake_ends_all_processes_of_torchrun_with_its_message(tmp_path):
    (tmp_path / "stories.txt").write_text(STORIES, encoding="utf-8")
    words = ["--data", "stories.txt", *SETTINGS, "--batch-size", "5", "--out", "odd"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = run_python(*launcher, str(ROOT / "train.py"), *words, cwd=tmp_path)
    assert done.returncode != 0
    said = "a step of 15 sequences (--batch-size x --grad-accum) cannot be shared by 2"
    assert said in done.stderr
    assert not (tmp_path / "odd").exists()


def test_windows_to_score_are_shared_and_every_process_runs():
    x = torch.arange(6).view(3, 2)
    for size in (1, 2, 3, 5):
        shares = [shard_windows(x, x, World(rank, size)) for rank in range(size)]
        scored = torch.cat([y[y >= 0] for _, y in shares])
        assert sorted(scored.tolist()) == list(range(6))
        assert all(len(own) for own, _ in shares)


@pytest.mark.parametrize(
    ("settings", "size", "dtype", "message"),
    [
        ({"auto_batch": True}, 2, torch.float32, "--auto-batch is for one process"),
        ({"parallel": "fsdp"}, 1, torch.float32, "start with `torchrun --nproc-per-node N"),
        ({"parallel": "fsdp"}, 2, torch.float16, "--dtype fp16 scales the loss"),
    ],
)
def test_what_cannot_be_shared_is_refused(monkeypatch, settings, size, dtype, message):
    monkeypatch.setenv("WORLD_SIZE", str(size))
    settings = {"batch_size": 4, "grad_accum": 1, "optimizer": "adamw"} | settings
    with pytest.raises(ValueError, match=message):
        check_parallel(settle(TrainConfig(**settings)), dtype)
