"""The training step and the loop."""

import dataclasses
import json
import re
from functools import partial

import numpy as np
import pytest
import torch

import gpt2.training.trainer
from gpt2.config import GPTConfig, TrainConfig, settle
from gpt2.generate.decoding import generate
from gpt2.model import GPT
from gpt2.runs.metrics import read_metrics
from gpt2.training.machine import choose_machine
from gpt2.training.optim import Muon, build_optimizers, learning_rate
from gpt2.training.run_training import make_plan
from gpt2.training.step import train_step
from tests.gpt2.data.streams import ArrayStream, make_trainer, text_stream
from tests.gpt2.stand_ins import curve

CONFIG = GPTConfig(n_layer=2, n_head=2, n_embd=16, vocab_size=32, block_size=8)


def _model() -> GPT:
    torch.manual_seed(3)
    return GPT(CONFIG)


def _sgd(model: GPT) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD(model.parameters(), lr=1.0)]


def test_accumulation_is_the_one_large_batch_also_when_targets_are_uneven():
    """Averaging the means of micro-batches would weight the tokens of short ones too much."""
    x, y = torch.randint(0, 32, (2, 8, 8))
    y[:2] = -100
    y[2, 3:] = -100
    whole, parts = _model(), _model()
    large = train_step(whole, _sgd(whole), [(x, y)], clip=0)
    micro_batches = [(x[i : i + 2], y[i : i + 2]) for i in (2, 4, 6, 0)]
    split = train_step(parts, _sgd(parts), micro_batches, clip=0)
    assert split.loss == pytest.approx(large.loss, rel=1e-6)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_clipping_bounds_the_step_and_reports_the_norm_before():
    x = torch.randint(0, 32, (2, 8))
    free, clipped = _model(), _model()
    start = torch.cat([p.detach().flatten() for p in free.parameters()])
    before = train_step(free, _sgd(free), [(x, x)], clip=0)
    after = train_step(clipped, _sgd(clipped), [(x, x)], clip=0.01)
    moved = torch.cat([p.detach().flatten() for p in clipped.parameters()]) - start
    assert before.grad_norm == pytest.approx(after.grad_norm, rel=1e-6)
    assert moved.norm().item() == pytest.approx(0.01, rel=1e-3)
    far = torch.cat([p.detach().flatten() for p in free.parameters()]) - start
    assert far.norm().item() == pytest.approx(before.grad_norm, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"attn": "triton"}, 50),
        ({"kernels": "triton", "preset": "mini"}, 50),
        ({"norm_kernel": "triton"}, 50),
        ({"attn": "triton", "steps": 7}, 7),
        ({"attn": "triton", "epochs": 1.0}, None),
        ({"kernels": "torch", "attn": "sdpa"}, 600),
    ],
)
def test_a_run_is_short_where_our_kernels_are_interpreted_unless_its_length_is_asked(
    options, steps
):
    settings = make_plan(TrainConfig(**{"device": "cpu", "preset": "demo"} | options)).settings
    assert settings.steps == steps
    assert (settings.eval_every == 25) == (steps == 50)


def test_warm_up_then_cosine_down_to_the_minimum():
    rates = [learning_rate(s, steps=100, warmup_steps=10, lr=1.0, min_lr=0.1) for s in range(110)]
    assert rates[:10] == pytest.approx([(s + 1) / 10 for s in range(10)])
    assert rates[54] == pytest.approx(0.55, abs=0.01)  # half-way down the cosine
    assert rates[99] == pytest.approx(0.1)
    assert rates[109] == pytest.approx(0.1)
    assert rates[9:] == sorted(rates[9:], reverse=True)


def test_only_matrices_decay():
    model = _model()
    (adamw,) = build_optimizers(model, lr=1e-3, weight_decay=0.1)
    decayed = {id(p) for g in adamw.param_groups if g["weight_decay"] for p in g["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in decayed) == (parameter.ndim == 2), name


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest():
    model = _model()
    muon, adamw = build_optimizers(model, lr=1e-3, optimizer="muon")
    names = {id(p): n for n, p in model.named_parameters()}
    hidden = {names[id(p)] for g in muon.param_groups for p in g["params"]}
    assert hidden == {n for n, p in model.named_parameters() if n.startswith("h.") and p.ndim == 2}
    assert sum(len(g["params"]) for g in adamw.param_groups) + len(hidden) == len(names)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.bfloat16, 1e-6), (torch.float32, 2e-2)])
def test_muon_updates_as_pytorchs_which_always_rounds_to_bfloat16(dtype, rtol):
    ours, theirs = (torch.nn.Parameter(torch.ones(60, 24)) for _ in range(2))
    options = {"lr": 0.01, "weight_decay": 0.1}
    muon = Muon([ours], dtype=dtype, **options)
    pytorchs = torch.optim.Muon([theirs], **options, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        ours.grad = torch.randn(60, 24)
        theirs.grad = ours.grad.clone()
        muon.step()
        pytorchs.step()
    moved, expected = ours - 1, theirs - 1
    error = ((moved - expected).norm() / expected.norm()).item()
    assert error < rtol
    assert error > 1e-4 or dtype == torch.bfloat16


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_run_learns_and_logs(tmp_path, optimizer, dtype):
    trainer = make_trainer(tmp_path, optimizer=optimizer, dtype=dtype, steps=40, eval_every=20)
    assert trainer.fit() is None
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    assert [m["step"] for m in metrics] == list(range(1, 41))
    assert [m["step"] for m in metrics if "val_loss" in m] == [20, 40]
    assert {"loss", "lr", "grad_norm", "tokens_per_s"} <= metrics[5].keys()
    assert metrics[-1]["loss"] < 0.75 * metrics[0]["loss"]
    assert metrics[-1]["tokens"] == 40 * 16 * 2 * 3


def test_the_largest_attention_logits_are_logged(tmp_path):
    trainer = make_trainer(
        tmp_path, model={"attn": "triton"}, log_attention=True, log_every=2, steps=2,
        check_kernels=1, eval_every=1,
    )  # fmt: skip
    seen: list[list[float]] = [[], []]

    def see(_, args: object, qkv: torch.Tensor, layer: int) -> None:
        if trainer.model.training and trainer.model.config.attn == "triton":
            q, k, _ = qkv.detach().double().view(-1, 16, 3, 2, 8).unbind(2)
            scores = torch.einsum("bihd,bjhd->hbij", q, k) * 8**-0.5
            hidden = ~torch.ones(16, 16, dtype=torch.bool).tril()
            seen[layer].append(scores.masked_fill(hidden, -torch.inf).amax((1, 2, 3)))

    for layer, block in enumerate(trainer.model.h):
        block.attn.c_attn.register_forward_hook(partial(see, layer=layer))
    assert trainer.fit() is None
    (metrics,) = (m for m in read_metrics(tmp_path / "metrics.jsonl") if "max_logit" in m)
    largest = torch.stack([torch.stack(calls).amax(0) for calls in seen])
    got = torch.tensor([[metrics[f"max_logit/{i}.{j}"] for j in range(2)] for i in range(2)])
    torch.testing.assert_close(got.double(), largest, rtol=1e-5, atol=1e-7)
    assert metrics["max_logit"] == got.max()
    assert trainer.model.largest_logits().isneginf().all()  # those of the next steps

    settings = settle(TrainConfig(log_attention=True, attn="sdpa", device="cpu"))
    with pytest.raises(ValueError, match="attention is sdpa here; use --attn triton"):
        choose_machine(torch.device("cpu"), settings, CONFIG)
    settings = dataclasses.replace(settings, attn="triton")
    assert choose_machine(torch.device("cpu"), settings, CONFIG)[1].attn == "triton"


def test_kernels_that_are_not_to_be_checked_are_said():
    for attn, said in (("sdpa", True), ("naive", False)):
        settings = settle(TrainConfig(check_kernels=5, attn=attn, device="cpu"))
        notes = choose_machine(torch.device("cpu"), settings, CONFIG)[0].notes
        assert any("--check-kernels: nothing to compare" in note for note in notes) == said


def test_the_loss_is_drawn_while_a_long_run_goes_on(tmp_path, monkeypatch):
    make_trainer(tmp_path / "short").fit()
    assert not (tmp_path / "short/loss.png").exists()
    monkeypatch.setattr(gpt2.training.trainer, "PLOT_SECONDS", 0.0)
    make_trainer(tmp_path / "long").fit()
    assert (tmp_path / "long/loss.png").stat().st_size > 5000


def test_epochs_set_the_number_of_steps(tmp_path):
    trainer = make_trainer(tmp_path, steps=None, epochs=2.0)
    assert trainer.batches.windows_per_epoch == 31
    assert trainer.steps == round(2 * 31 / 6)


def test_the_golden_loss_curve(tmp_path, request):
    """The losses of a fixed run, as committed. A change of them must be meant, and explained.

    To renew: delete golden_losses.json and run this test once.
    """
    train = text_stream(3000)
    make_trainer(tmp_path, train=train, model={"dropout": 0.0}, steps=30, eval_every=10).fit()
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    curve = {"train": [m["loss"] for m in metrics]}
    curve["valid"] = [m["val_loss"] for m in metrics if "val_loss" in m]
    path = request.path.with_name("golden_losses.json")
    if not path.exists():
        path.write_text(json.dumps(curve, indent=1) + "\n")
        pytest.fail(f"wrote {path.name}: look at it, commit it, and run again")
    golden = json.loads(path.read_text())
    assert curve["train"] == pytest.approx(golden["train"], rel=1e-4)
    assert curve["valid"] == pytest.approx(golden["valid"], rel=1e-4)


def test_the_loss_comes_down_to_the_entropy_of_the_text_and_never_below_it(tmp_path):
    """Text drawn from a Markov chain, whose entropy is known exactly: no model can do better."""
    rng = np.random.default_rng(7)
    states = 16
    chain = rng.dirichlet([0.4] * states, size=states)
    eigenvalues, vectors = np.linalg.eig(chain.T)
    stationary = vectors[:, np.argmax(eigenvalues.real)].real
    stationary /= stationary.sum()
    entropy = -(stationary[:, None] * chain * np.log(chain)).sum()

    def draw(length: int) -> ArrayStream:
        cumulative, ids = chain.cumsum(axis=1), np.zeros(length, dtype=np.int64)
        for t, u in enumerate(rng.random(length - 1), start=1):
            ids[t] = min(np.searchsorted(cumulative[ids[t - 1]], u), states - 1)
        return ArrayStream(ids)

    train, valid = draw(60_000), draw(20_000)
    pairs = valid.ids[:-1], valid.ids[1:]
    floor = -np.log(chain[pairs]).mean()  # what the chain itself scores on this very text
    assert floor == pytest.approx(entropy, rel=0.02)

    data = {"train": train, "valid": valid}
    model = {"vocab_size": states, "n_layer": 1, "n_embd": 32}
    settings = {"steps": 250, "batch_size": 16, "grad_accum": 1, "lr": 1e-2}
    settings |= {"eval_every": 50, "checkpoint_every": 250}
    make_trainer(tmp_path, **data, model=model, **settings).fit()
    losses = [m["val_loss"] for m in read_metrics(tmp_path / "metrics.jsonl") if "val_loss" in m]
    assert min(losses) > floor
    assert losses[-1] < 1.03 * floor


def test_samples_during_training_stand_beside_the_metrics_and_change_no_step(tmp_path):
    def sample(model: GPT) -> dict[str, str]:
        assert not model.training
        ids = torch.zeros(1, 1, dtype=torch.long)
        return {"greedy": str(generate(model, ids, 3, temperature=0).tolist()), "other": "x"}

    options = {"model": {"dropout": 0.2}, "steps": 8}
    make_trainer(tmp_path / "plain", **options).fit()
    trainer = make_trainer(tmp_path / "run", sample=sample, sample_every=3, **options)
    trainer.fit()
    assert trainer.model.training
    assert curve(tmp_path / "run") == curve(tmp_path / "plain")
    written = {path.name: path.read_text() for path in (tmp_path / "run/samples").iterdir()}
    assert written.keys() == {"step-000003.txt", "step-000006.txt"}
    assert re.fullmatch(
        r"--- greedy\n\[\[0(, \d+){3}\]\]\n\n--- other\nx\n", written["step-000006.txt"]
    )
    assert not (tmp_path / "plain/samples").exists()
