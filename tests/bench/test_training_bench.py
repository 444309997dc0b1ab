"""The training benchmark: what it times is checked first, and what it times is what it says."""

import dataclasses
import importlib.util
import itertools
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import gpt2.training.machine
from bench.bench_training import NO_COMPILE, cases, ladder
from bench.harness import peer_models as peers
from bench.harness.clocks import clock_for
from bench.harness.limits import Limits
from bench.harness.measure import Budget, Case, Setting, measure
from bench.harness.resident_memory import resident_memory
from bench.harness.training_steps import Problem, Recipe, Step
from bench.harness.training_variants import largest, step_variants, utilisation
from gpt2.attention import BACKENDS
from gpt2.config import PRESETS, GPTConfig
from gpt2.training.estimate import flops_per_token, flops_per_token_nanogpt
from tests.gpt2.stand_ins import ROOT, run_python

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LIMITS = Limits(matmul_tflops=1.0, matmul_dtype="float32", copy_gbps=1.0, launch_us=None)
TINY = GPTConfig(n_layer=2, n_head=2, n_embd=32, vocab_size=200)
OURS = Recipe("ours", "triton", "triton", "triton", "triton")
PEER = """
from dataclasses import make_dataclass
import torch

GPTConfig = make_dataclass(
    "GPTConfig", "block_size vocab_size n_layer n_head n_embd dropout bias".split()
)

class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        assert config.vocab_size == 256 and config.dropout == 0
        self.embed = torch.nn.Embedding(config.vocab_size, config.n_embd)
        torch.nn.init.normal_(self.embed.weight, std=STD)

    def forward(self, idx, targets=None):
        logits = self.embed(idx) @ self.embed.weight.T
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return logits, loss
"""


@pytest.fixture(autouse=True)
def _no_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(peers.PEER_VARIABLE, raising=False)


def _problem(**changes: Any) -> Problem:
    tiny = Problem("tiny", TINY, 2, 16, DEVICE, torch.float32)
    return dataclasses.replace(tiny, **changes)


def _measure(*recipes: Recipe, **changes: Any) -> list[Any]:
    problem = _problem(**changes)
    rates = {"tokens_per_s": problem.tokens}
    steps = partial(step_variants, problem, list(recipes))
    case = Case("training", {"model": "tiny"}, steps, rates, clock="wall")
    budget = Budget(0.0, min_rounds=2, warm_up=0.0)
    return [found.row for found in measure(case, clock_for(DEVICE), LIMITS, budget)]


def _checkout(folder: Path, monkeypatch: pytest.MonkeyPatch, std: float) -> Recipe:
    folder.mkdir()
    (folder / "model.py").write_text(PEER.replace("STD", str(std)))
    monkeypatch.setenv(peers.PEER_VARIABLE, str(folder))
    return Recipe(peers.checkout_name(), peer=peers.CHECKOUT)


def test_every_way_to_compute_the_step_has_the_gradients_of_the_plain_model():
    whole = Recipe("naive", "naive", head="whole")
    recipes = [OURS, whole, Recipe("padded", head="padded"), Recipe("chunks")]
    for row in _measure(*recipes):
        assert row.status == "ok", (row.variant, row.reason)
        assert 0 <= row.metrics["error_share"] <= 1
        assert row.metrics["tokens_per_s"] == pytest.approx(32 / row.seconds["median"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="bf16 on a CPU, by autocast")
def test_the_ladder_is_checked_against_more_precision():
    recipes = [Recipe("naive", "naive", head="whole", fp32=True), Recipe("bf16")]
    rows = _measure(*recipes, dtype=torch.bfloat16)
    assert [row.status for row in rows] == ["ok", "ok"]
    assert rows[0].metrics["error_share"] < 0.01 < rows[1].metrics["error_share"]


def test_a_wrong_kernel_is_reported_and_not_timed(monkeypatch):
    def sees_the_future(qkv: Tensor, **_: object) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in qkv.unbind(2))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    monkeypatch.setitem(BACKENDS, "naive", sees_the_future)
    wrong, right = _measure(Recipe("naive", "naive"), Recipe("sdpa"))
    assert (wrong.status, wrong.seconds) == ("failed", None)
    assert "wrong result: the gradient of" in wrong.reason
    assert right.status == "ok"


def test_variants_that_share_weights_keep_their_own_kernels(monkeypatch):
    """Eager variants of ours train one set of weights in turn."""
    used = []

    def attend(name: str, qkv: Tensor, **options: Any) -> Tensor:
        used.append(name)
        return BACKENDS["sdpa"](qkv, **options)

    monkeypatch.setitem(BACKENDS, "naive", partial(attend, "a"))
    monkeypatch.setitem(BACKENDS, "flash", partial(attend, "b"))
    _measure(Recipe("one", "naive"), Recipe("two", "flash"))
    rounds = "".join(used[-8:])  # two layers a step
    assert rounds in ("aabbaabb", "bbaabbaa")


@pytest.mark.parametrize(("std", "status"), [(0.02, "ok"), (2.0, "failed")])
def test_a_checkout_is_timed_if_its_first_loss_is_that_of_a_guess(
    std, status, tmp_path, monkeypatch
):
    recipe = _checkout(tmp_path / "theirs", monkeypatch, std)
    (row,) = _measure(recipe)
    assert (row.variant, row.status, row.ours) == ("theirs", status, False)
    assert status == "ok" or "first loss" in row.reason


def test_peers_that_are_missing_are_skipped_with_the_remedy(tmp_path, monkeypatch):
    (row,) = _measure(Recipe("model.py", peer=peers.CHECKOUT))
    assert row.status == "skipped"
    assert f"set {peers.PEER_VARIABLE}" in row.reason
    monkeypatch.setenv(peers.PEER_VARIABLE, str(tmp_path))
    (row,) = _measure(Recipe("model.py", peer=peers.CHECKOUT))
    assert "has no model.py" in row.reason
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (row,) = _measure(Recipe("transformers", peer=peers.TRANSFORMERS))
    assert "pip install" in row.reason


def test_our_kernels_are_out_of_sight_of_a_peer_and_come_back():
    import kernels.gelu as ours

    with peers._without_our_kernels():
        spec = importlib.util.find_spec("kernels")
        assert spec is None or spec.origin != str(ROOT / "kernels/__init__.py")
    assert sys.modules["kernels.gelu"] is ours
    assert importlib.util.find_spec("kernels").origin == str(ROOT / "kernels/__init__.py")


@pytest.mark.slow
def test_transformers_trains_beside_ours_from_the_root_of_the_repository():
    pytest.importorskip("transformers")
    script = """
from tests.bench.test_training_bench import OURS, Recipe, _measure
rows = _measure(OURS, Recipe("transformers", peer="transformers"))
assert [row.status for row in rows] == ["ok", "ok"], rows
"""
    done = run_python("-c", script, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("most", [0, 1, 2, 37, 100, 999])
def test_the_largest_batch_is_found_within_a_sixteenth(most):
    tried = []

    def fits(batch: int) -> bool:
        tried.append(batch)
        return batch <= most

    assert most - most / 16 <= largest(fits) <= most
    assert len(tried) <= 16
    assert max(tried) <= 2 * max(most, 1)
    assert 94 <= largest(lambda batch: True, most=100) <= 100


def test_a_rung_adds_one_thing_to_the_last_that_can_run():
    gpu = Setting("gpu", torch.device("cuda"))
    problem = _problem(shape=PRESETS["gpt2"], dtype=torch.bfloat16)
    rungs = ladder(problem, gpu)
    assert [rung.skip for rung in rungs] == [None] * len(rungs)
    for below, above in itertools.pairwise(rungs):
        fields = dataclasses.asdict(below).items() ^ dataclasses.asdict(above).items()
        changed = {name for name, _ in fields} - {"name"}
        fused = {"norm_kernel", "mlp_kernel", "head"}
        assert changed == fused if "fused" in above.name else len(changed) == 1
    top = dataclasses.replace(OURS, name=rungs[-1].name, compile=True)
    assert rungs[-1] == top

    on_cpu = ladder(problem, Setting("smoke", torch.device("cpu")))
    assert [rung.name for rung in on_cpu] == [rung.name for rung in rungs]
    assert on_cpu[-1].skip == NO_COMPILE
    assert on_cpu[-1].attn == "sdpa"  # as the rungs with our kernels were left out


def test_the_gpu_profile_begins_with_gpt2_and_goes_up_to_xl(monkeypatch):
    monkeypatch.setattr(gpt2.training.machine, "_native_bf16", lambda device: True)
    found = sorted(cases(Setting("gpu", torch.device("cuda"))), key=lambda case: case.priority)
    first, second, third = (case.case for case in found[:3])
    assert (first["model"], first["compile"], first["dtype"]) == ("gpt2", False, "bfloat16")
    assert (second["model"], second["compile"]) == ("gpt2", True)
    assert third["ladder"]
    sizes = [case.case["model"] for case in found if case.priority == 1]
    assert sizes == ["gpt2-medium", "gpt2-large", "gpt2-xl", "gpt2"]


def test_utilisation_is_by_the_data_sheet_in_both_conventions(monkeypatch):
    monkeypatch.setattr("bench.harness.training_variants.peak_flops", lambda device: 989e12)
    problem = _problem(shape=PRESETS["gpt2"], B=1, T=1024)
    found = utilisation(problem, seconds=2.0)
    exact, nanogpt = (f(PRESETS["gpt2"], 1024) for f in (flops_per_token, flops_per_token_nanogpt))
    expected = {"mfu_exact": 512 * exact / 989e12, "mfu_nanogpt": 512 * nanogpt / 989e12}
    assert found == pytest.approx(expected)


def test_a_step_is_the_trainers_own_and_learns():
    step = Step(_problem(), Recipe("sdpa"))
    losses = [step.run().loss for _ in range(5)]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells it")
def test_resident_memory_holds_weights_gradients_and_optimizer():
    shape = GPTConfig(n_layer=2, n_head=4, n_embd=512, vocab_size=16384)
    problem = _problem(shape=shape, B=1, T=8, device=torch.device("cpu"))
    parameters = sum(p.numel() for p in Step(problem, Recipe("sdpa")).training.model.parameters())
    grown = resident_memory(problem, Recipe("sdpa"))
    if grown is None:
        pytest.skip("this kernel does not set the mark back")
    # fp32 weights, gradients and two moments; the logits are 8 x 16384, and the head's gradient
    # may be there twice.
    assert 16 * parameters < grown < 24 * parameters + 64 * 2**20
