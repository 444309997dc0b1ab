"""Which attention backends can run here, why not, and which is the fastest."""

import dataclasses
import time

import pytest
import torch
import tyro

from gpt2 import backends
from gpt2.attention import BACKENDS, naive
from gpt2.backends import describe, fastest, unusable
from gpt2.config import GPTConfig, TrainConfig, settle
from gpt2.model import GPT
from gpt2.training.machine import choose_machine
from tests.gpt2.stand_ins import run_python

CPU = {"device": torch.device("cpu"), "dtype": torch.float32}
SMALL = GPTConfig(n_layer=1, n_head=2, n_embd=16, vocab_size=50, block_size=8)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("flesh", {}, "choose one of naive, sdpa, sdpa-math, sdpa-efficient, sdpa-flash, sdpa-"),
        ("flash", {"dropout": 0.1}, "No available kernel.* non-zero dropout; use --attn sdpa"),
        ("sdpa-flash", {"dropout": 0.1}, "No available kernel.* non-zero dropout; use --attn sdpa"),
        ("sdpa-cudnn", {}, "No viable backend .*; use --attn sdpa"),
        ("sdpa-efficient", {}, "No viable backend .*; use --attn sdpa"),
        ("flash3", {}, "the module flash_attn_interface is not installed .*; use --attn sdpa"),
        ("flash4", {}, r"the module flash_attn.cute is not installed \(pip install .*--attn sdpa"),
        ("flex", {}, "does not support backward on CPU.*; use --attn sdpa"),
        ("flex", {"dropout": 0.1}, "FlexAttention has no dropout; use --attn sdpa"),
        ("triton", {"n_head": 1}, "head widths up to 256, got 768; use more heads"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="some of them run there")
def test_what_cannot_run_is_refused_in_the_words_of_what_refused_it(name, options, message):
    config = settle(TrainConfig(attn=name, device="cpu", dtype="fp32"))
    shape = GPTConfig(**options)
    with pytest.raises(ValueError, match=rf"--attn {name}: .*{message}"):
        choose_machine(torch.device("cpu"), config, shape)
    if message.endswith("sdpa"):
        sdpa = dataclasses.replace(config, attn="sdpa")
        assert choose_machine(torch.device("cpu"), sdpa, shape)[1].attn == "sdpa"


def test_a_window_is_no_obstacle_to_pytorchs_flash_kernel_on_a_cpu():
    for options in ({"window": 4}, {"attend": "within-documents", "end_of_text": 0}):
        assert unusable("flash", dataclasses.replace(SMALL, **options), **CPU) is None


def _slower(seconds):
    def attend(qkv, **options):
        time.sleep(seconds)
        return naive(qkv, **options)

    return attend


@pytest.mark.timeout(60)
def test_auto_takes_the_fastest_and_measures_once(monkeypatch, tmp_path):
    monkeypatch.setattr(backends, "CACHE", tmp_path / "cache/attention.json")
    rivals = {"sdpa": _slower(0.02), "naive": _slower(0.01), "ours": _slower(0.001)}
    for name in list(BACKENDS):
        if name != "triton":
            monkeypatch.setitem(BACKENDS, name, rivals.get(name, rivals["sdpa"]))
    monkeypatch.setitem(BACKENDS, "ours", rivals["ours"])
    monkeypatch.setitem(BACKENDS, "broken", lambda qkv, **options: qkv.absent)
    name, seconds = fastest(SMALL, 2, **CPU)
    assert name == "ours"
    assert {"sdpa", "naive"} < seconds.keys()
    assert not seconds.keys() & {"triton", "broken"}
    assert seconds["sdpa"] > seconds["naive"] > seconds["ours"] > 0.001

    monkeypatch.setattr(backends, "CACHE", tmp_path / "long.json")
    monkeypatch.setitem(backends.MAX_SCORES, "cpu", 2**12)
    long = dataclasses.replace(SMALL, block_size=2**20)  # as it is, it would take hours
    assert not fastest(long, 2, **CPU)[1].keys() & {"naive", "sdpa-math"}
    monkeypatch.setattr(backends, "CACHE", tmp_path / "cache/attention.json")
    monkeypatch.setattr(backends, "_measure", lambda *_: pytest.fail("measured again"))
    assert fastest(SMALL, 2, **CPU) == (name, seconds)
    shape = dataclasses.replace(SMALL, n_head=1)
    monkeypatch.setattr(backends, "_measure", lambda *_: {"sdpa": 1.09, "naive": 1.0})
    assert fastest(shape, 2, **CPU)[0] == "sdpa"  # another shape is measured; a tie is PyTorch's
    assert fastest(SMALL, 2, **CPU) == (name, seconds)

    machine, _ = choose_machine(CPU["device"], settle(TrainConfig(dtype="fp32")), shape)
    assert "naive 1e+03 ms, sdpa 1.09e+03 ms" in machine.notes[0]
    _, again = choose_machine(CPU["device"], settle(TrainConfig()), SMALL, before="naive")
    assert again.attn == "naive"  # a run that goes on keeps to its kernel


def test_whose_tiles_our_kernel_takes_and_where_it_is_slow_is_said(monkeypatch):
    cuda, unknown = torch.device("cuda", 0), ", whose table has no tile sizes for {} and takes {}"
    monkeypatch.setattr("kernels._common.launch.INTERPRETED", False)
    for card, taken in (("sm_90", ""), ("sm_89", "those of sm_86"), ("sm_87", "small ones")):
        monkeypatch.setattr("kernels._common.launch._architecture", lambda _, card=card: card)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
        said = unknown.format(card, taken) if taken else ""
        assert describe("triton", cuda) == "our Triton kernel" + said
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))  # a T4
    assert "no tensor cores" in describe("triton", cuda)
    assert "interpreted" in describe("triton", torch.device("cpu"))


@pytest.mark.parametrize("interpreted", [False, True])
def test_the_module_says_what_runs_here(interpreted):
    environment = {"TRITON_INTERPRET": str(int(interpreted)), "CUDA_VISIBLE_DEVICES": ""}
    done = run_python("-m", "gpt2.backends", **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr
    lines = done.stdout.splitlines()
    said = [line.split()[0].rstrip(":") for line in lines if line.startswith("    ")]
    assert said.count("naive") == said.count("sdpa") == said.count("triton") == 2
    refused = sum("set TRITON_INTERPRET=1" in line for line in lines if "triton:" in line)
    assert refused == (0 if interpreted else 2)


def test_a_backend_of_ones_own_is_one_entry_in_the_table(monkeypatch):
    monkeypatch.setitem(BACKENDS, "mine", lambda qkv, **options: naive(qkv, **options))
    config = settle(
        tyro.cli(TrainConfig, args=["--attn", "mine", "--device", "cpu", "--dtype", "fp32"])
    )
    shape = GPTConfig(n_layer=1, n_head=2, n_embd=16, vocab_size=50, block_size=8)
    machine, shape = choose_machine(torch.device("cpu"), config, shape)
    assert "attention: mine (a backend of your own), as asked" in machine.notes
    idx = torch.arange(8)[None]
    torch.manual_seed(0)
    expected = GPT(dataclasses.replace(shape, attn="naive"))(idx)[0]
    torch.manual_seed(0)
    assert torch.equal(GPT(shape)(idx)[0], expected)
    with pytest.raises(ValueError, match="--attn yours: there is no such attention backend"):
        choose_machine(torch.device("cpu"), settle(TrainConfig(attn="yours")), shape)
