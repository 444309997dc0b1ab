"""NaN and Inf wherever they arise: they never reach the weights, and a broken kernel is named."""

import dataclasses
import importlib
import json
import math

import pytest
import torch
import torch.nn.functional as F

import gpt2.training.trainer
from gpt2.attention import BACKENDS, naive
from gpt2.loss import linear_cross_entropy
from gpt2.runs.checkpoint import list_checkpoints, load_checkpoint
from gpt2.runs.metrics import read_metrics
from gpt2.training.recovery import Diverged
from tests.gpt2.data.streams import make_trainer

BAD = 5  # the step that goes wrong


def _poison(trainer, steps):
    """Make the gradient of one parameter NaN in the backward passes of the given steps."""
    weight = trainer.model.ln_f.weight
    weight.register_hook(lambda grad: grad * math.nan if trainer.step in steps else grad)


def test_a_step_that_is_not_finite_never_reaches_the_weights(tmp_path):
    trainer = make_trainer(tmp_path, steps=3)
    _poison(trainer, {1})
    before = []
    step = trainer.next_step

    def watched():
        before.append([p.detach().clone() for p in trainer.model.parameters()])
        return step()

    trainer.next_step = watched
    trainer.fit()
    assert trainer.guard.skipped == 1
    assert all(torch.equal(a, b) for a, b in zip(before[1], before[2], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(before[0], before[1], strict=True))
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_too_many_bad_steps_end_the_run_with_the_last_checkpoint_intact(tmp_path):
    trainer = make_trainer(tmp_path, steps=30, max_skipped=3)
    _poison(trainer, set(range(5, 30)))
    with pytest.raises(Diverged, match="3 steps in a row had a loss or gradient"):
        trainer.fit()
    assert trainer.step == 8
    newest = load_checkpoint(list_checkpoints(tmp_path / "checkpoints")[-1])
    assert newest.state.step == 4
    assert all(t.isfinite().all() for t in newest.model.values())


def test_fp16_recovers_from_overflow_by_lowering_the_scale(tmp_path):
    trainer = make_trainer(tmp_path, dtype=torch.float16, steps=8)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    trainer.fit()
    assert 0 < trainer.guard.skipped < 8
    assert trainer.scaler.get_scale() < 2.0**24
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_fp16_that_overflows_in_every_forward_ends_with_advice(tmp_path):
    trainer = make_trainer(tmp_path, dtype=torch.float16, steps=30)
    with torch.no_grad():
        trainer.model.h[1].mlp.c_fc.weight.normal_(std=1e4)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    with pytest.raises(Diverged, match=r"10 steps in a row.*or --dtype fp32"):
        trainer.fit()
    assert all(map(torch.equal, before, trainer.model.parameters()))


def _losses(folder):
    return {m["step"]: m["loss"] for m in read_metrics(folder / "metrics.jsonl") if "loss" in m}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "module", ["wte", "h.0.attn.c_attn", "h.0.attn", "h.1.mlp.c_fc", "h.1.mlp"]
)
def test_a_bad_activation_costs_one_step(tmp_path, module, value):
    trainer = make_trainer(tmp_path, steps=8, eval_every=8)

    def poison(module, args, out):
        if trainer.step + 1 == BAD:
            out.data.view(-1)[7] = value

    trainer.model.get_submodule(module).register_forward_hook(poison)
    trainer.fit()
    assert trainer.guard.skipped == 1
    assert sorted(_losses(tmp_path)) == [step for step in range(1, 9) if step != BAD]
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def _add_layer_norm(branch, x, weight, bias, eps, *, dtype):
    x = x + branch
    return F.layer_norm(x, weight.shape, weight, bias, eps).to(dtype), x


def _gelu(x, bias):
    return F.gelu(x + bias, approximate="tanh")


KERNELS = {
    "attn": (None, "", naive),
    "norm_kernel": ("kernels.layer_norm", "add_layer_norm", _add_layer_norm),
    "mlp_kernel": ("kernels.gelu", "gelu_tanh", _gelu),
    "loss_kernel": ("kernels.linear_cross_entropy", "linear_cross_entropy", linear_cross_entropy),
}
"""What each option's "triton" calls, and the same by PyTorch."""


@pytest.mark.parametrize("where", ["output", "gradient"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_that_gives_nan_costs_one_step_and_is_named(
    tmp_path, monkeypatch, capsys, kernel, where
):
    trainer = make_trainer(tmp_path, steps=8, eval_every=8, check_kernels=BAD)

    def poisoned(function, bad):
        def call(*args, **options):
            result = function(*args, **options)
            first = result[0] if isinstance(result, tuple) else result
            # Once in a step, and once in the check of that step, which runs without dropout.
            due = trainer.step + trainer.model.training == BAD
            if bad and due and first.requires_grad:
                if where == "gradient":
                    first.register_hook(lambda grad: grad * math.nan)
                else:
                    first.data.fill_(math.nan)
            return result

        return call

    for name, (module, attribute, function) in KERNELS.items():
        call = poisoned(function, name == kernel)
        if module is None:
            monkeypatch.setitem(BACKENDS, "triton", call)
        else:
            monkeypatch.setattr(importlib.import_module(module), attribute, call)
    trainer.model.use(**dict.fromkeys(KERNELS, "triton"))
    trainer.fit()
    said = capsys.readouterr().out
    assert f"step {BAD}: skipped, as it is not finite" in said
    blamed = [line for line in said.splitlines() if "do not trust this kernel" in line]
    assert len(blamed) == 1
    assert blamed[0].startswith(f"step {BAD}: {kernel} triton against PyTorch's: gradients differ")
    assert trainer.guard.skipped == 1
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_a_validation_loss_that_is_not_finite_is_told_and_never_best(tmp_path, monkeypatch, capsys):
    trainer = make_trainer(tmp_path, steps=12)
    evaluate = gpt2.training.trainer.evaluate

    def broken(*args, **options):
        found = evaluate(*args, **options)
        return dataclasses.replace(found, loss=math.nan) if trainer.step == 8 else found

    monkeypatch.setattr(gpt2.training.trainer, "evaluate", broken)
    trainer.fit()
    assert "step 8: the validation loss is nan" in capsys.readouterr().out
    assert math.isfinite(trainer.best_val_loss)
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    found = {m["step"]: m.get("val_loss") for m in read_metrics(tmp_path / "metrics.jsonl")}
    assert found[8] is None
    assert found[4] is not None
    assert load_checkpoint(tmp_path / "checkpoints/step-000008").state.val_loss is None
