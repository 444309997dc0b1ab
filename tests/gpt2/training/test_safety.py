"""Loss spikes, exhausted memory and wrong kernels: noticed, named, and survived as asked."""

import math
import signal

import pytest
import torch

import gpt2.training.trainer
from gpt2.attention import BACKENDS, naive
from gpt2.config import PORTABLE, GPTConfig
from gpt2.model import GPT
from gpt2.runs.metrics import read_metrics
from gpt2.training.kernel_check import SUSPICIOUS, kernel_errors
from gpt2.training.monitor import catching
from gpt2.training.recovery import LEAST, Diverged, SpikeGuard
from gpt2.training.step import StepResult, train_step
from tests.gpt2.data.streams import make_trainer

SETTINGS = {"steps": 30, "eval_every": 30, "checkpoint_every": 4, "spike_sigma": 6.0}


def _losses(folder):
    return {m["step"]: m["loss"] for m in read_metrics(folder / "metrics.jsonl") if "loss" in m}


def _spike_at(monkeypatch, trainer, step, times=1):
    """Make the loss of one step jump, as a bad stretch of text does."""
    left = [times]

    def spiked(*args, **kwargs):
        if trainer.step + 1 != step or not left[0]:
            return train_step(*args, **kwargs)
        left[0] -= 1
        jumped = [(x, torch.full_like(y, 31)) for x, y in args[2]]
        limit = kwargs.pop("max_loss")
        result = train_step(args[0], args[1], jumped, **kwargs, max_loss=-math.inf)
        return StepResult(99.0, result.grad_norm, skipped=limit < 99)

    monkeypatch.setattr(gpt2.training.trainer, "train_step", spiked)


def test_a_spike_is_told_from_noise():
    torch.manual_seed(1)
    guard = SpikeGuard(6.0, ())
    for loss in (4 + 0.1 * torch.randn(500)).tolist():
        assert loss < guard.limit
        guard.losses.append(loss)
    assert 4.3 < guard.limit < 5
    assert SpikeGuard(6.0, [4.0] * (LEAST - 1)).limit == math.inf
    assert SpikeGuard(0, [4.0] * 100).limit == math.inf


@pytest.mark.parametrize("policy", ["warn", "skip"])
def test_a_spike_is_announced_and_reaches_the_weights_only_with_warn(
    tmp_path, monkeypatch, capsys, policy
):
    trainer = make_trainer(tmp_path, **SETTINGS, on_spike=policy)
    _spike_at(monkeypatch, trainer, 25)
    trainer.fit()
    assert "step 25: loss 99.0000 is a spike, above" in capsys.readouterr().out
    assert trainer.guard.skipped == (policy == "skip")
    assert (99.0 in _losses(tmp_path).values()) == (policy == "warn")


def test_rollback_takes_the_last_checkpoint_and_leaves_the_text_of_the_spike_out(
    tmp_path, monkeypatch, capsys
):
    trainer = make_trainer(tmp_path, **SETTINGS, on_spike="rollback")
    _spike_at(monkeypatch, trainer, 26)
    trainer.fit()
    assert "rolled back to step 24, and past the text up to step 26" in capsys.readouterr().out
    assert trainer.guard.rollbacks == 1
    assert trainer.step == 30
    assert sorted(_losses(tmp_path)) == list(range(1, 31))
    assert max(_losses(tmp_path).values()) < 5
    # 30 steps and the two that were rolled back: so many batches were drawn.
    straight = make_trainer(tmp_path / "straight", **SETTINGS)
    for _ in range(32 * 3):
        straight.batches.next()
    assert trainer.batches.state_dict() == straight.batches.state_dict()


def test_endless_spikes_end_the_run(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, **SETTINGS, on_spike="rollback", max_skipped=3)
    _spike_at(monkeypatch, trainer, 26, times=99)
    with pytest.raises(Diverged, match="spiked again after 3 rollbacks"):
        trainer.fit()


def _memory_for(monkeypatch, sequences):
    def limited(model, optimizers, micro_batches, **options):
        if max(len(x) for x, _ in micro_batches) > sequences:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nMore.")
        return train_step(model, optimizers, micro_batches, **options)

    monkeypatch.setattr(gpt2.training.trainer, "train_step", limited)


def test_auto_batch_halves_the_micro_batch_and_keeps_the_step(tmp_path, monkeypatch, capsys):
    settings = SETTINGS | {"batch_size": 6, "grad_accum": 2, "steps": 8}
    straight = make_trainer(tmp_path / "straight", **settings)
    straight.fit()
    _memory_for(monkeypatch, 2)
    trainer = make_trainer(tmp_path / "halved", **settings, auto_batch=True)
    trainer.fit()
    assert "going on with micro-batches of 3 instead of 6, 4 a step" in capsys.readouterr().out
    assert (trainer.settings.batch_size, trainer.settings.grad_accum) == (1, 12)
    assert list(_losses(tmp_path / "halved").values()) == pytest.approx(
        list(_losses(tmp_path / "straight").values()), rel=1e-5
    )


def test_nohup_keeps_a_hangup_from_ending_a_run():
    for handler, ends in ((signal.SIG_DFL, True), (signal.SIG_IGN, False)):
        before = signal.signal(signal.SIGHUP, handler)
        try:
            with catching() as caught:
                signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == handler
        finally:
            signal.signal(signal.SIGHUP, before)
        assert caught == [signal.SIGHUP] * ends


def test_a_compiler_that_fails_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    trainer = make_trainer(tmp_path / "run", **SETTINGS, compile=True)
    # monkeypatch would delete the option, which PyTorch keeps elsewhere than in __dict__.
    no_compiler = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)})
    with no_compiler, pytest.raises(ValueError, match=r"torch.compile failed: .*--no-compile"):
        trainer.fit()
    make_trainer(tmp_path / "other", **SETTINGS, compile=False).fit()


def test_a_wrong_kernel_is_the_one_that_is_named(monkeypatch):
    def off_by_a_percent(qkv, **options):
        return 1.01 * naive(qkv, **options)

    monkeypatch.setitem(BACKENDS, "triton", off_by_a_percent)
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 32, "vocab_size": 64, "block_size": 16}
    model = GPT(GPTConfig(**shape, **dict.fromkeys(PORTABLE, "triton"), dropout=0.1))
    x, y = torch.randint(0, 64, (2, 2, 16))
    state = torch.get_rng_state()
    errors = kernel_errors(model.train(), x, y)
    assert errors.keys() == PORTABLE.keys()
    wrong = [name for name, error in errors.items() if error > SUSPICIOUS[torch.float32]]
    assert wrong == ["attn"]
    assert model.training
    assert model.config.norm_kernel == "triton"
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


def test_a_sound_kernel_is_not_blamed_for_gradients_that_vanish_in_fp16():
    shape = {"n_layer": 1, "n_head": 2, "n_embd": 32, "vocab_size": 256, "block_size": 64}
    model = GPT(GPTConfig(**shape, attn="naive"))
    x, y = torch.randint(0, 256, (2, 32, 64))
    unscaled, scaled = (
        kernel_errors(model, x, y, autocast=torch.autocast("cpu", torch.float16), loss_scale=s)
        for s in (1.0, 2.0**16)
    )
    assert scaled["attn"] < 3e-3 < unscaled["attn"]


def test_checking_kernels_does_not_change_the_run(tmp_path, capsys):
    model = {"attn": "naive", "dropout": 0.1}
    plain = make_trainer(tmp_path / "plain", **SETTINGS, model=model)
    plain.fit()
    checked = make_trainer(tmp_path / "checked", **SETTINGS, check_kernels=10, model=model)
    checked.fit()
    assert _losses(tmp_path / "plain") == _losses(tmp_path / "checked")
    assert "step 10: attn naive against PyTorch's: gradients differ by" in capsys.readouterr().out
    lines = read_metrics(tmp_path / "checked/metrics.jsonl")
    found = [line["kernel_error/attn"] for line in lines[9::10]]
    assert len(found) == 3
    assert max(found) < SUSPICIOUS[torch.float32]
