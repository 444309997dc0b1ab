"""gpt2.export: what transformers makes of an exported run, and what cannot be exported."""

import copy
import dataclasses
import importlib.util
import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gpt2.common.devices import DTYPES
from gpt2.config import TrainConfig, settle
from gpt2.export.__main__ import Arguments, main
from gpt2.generate.decoding import generate
from gpt2.model import GPT
from gpt2.tokenizer import Tokenizer
from gpt2.weights import load_pretrained
from gpt2.weights.export import export
from gpt2.weights.open_model import open_model
from kernels.testing import judge
from tests.gpt2.data.hub_stand_in import hub
from tests.gpt2.stand_ins import ROOT, loud_model, run_python, write_run

TEXTS = [
    *("Once upon a time there was a fox.", "", " ", "\n\n\ttabs  and   spaces   ", "don't I'LL"),
    *("na\u00efve \u65e5\u672c\u8a9e \U0001f98a\u200d\U0001f525", "e\u0301 \u00e9 \u0627\u0644"),
    *("one<|endoftext|>two<|endoftext|>", "<|endoftext", "123 3.14 x==y;", "\u00a0\u2028\ufffd\0"),
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    text = "Once upon a time there was a fox. It met a hen, and they talked, caf\u00e9.\n" * 9
    return Tokenizer.train([text], 290, processes=1)


def build(tokenizer: Tokenizer, **options: Any) -> GPT:
    return loud_model(**{"vocab_size": tokenizer.vocab_size, "block_size": 24, **options})


def make_run(folder: Path, tokenizer: Tokenizer, losses: dict[int, float]) -> dict[int, GPT]:
    """A run folder with a checkpoint of each step."""
    return {
        step: write_run(folder, Path("no.txt"), tokenizer, 24, step=step, val_loss=loss)
        for step, loss in losses.items()
    }


def with_rounded_matrices(model: GPT, dtype: torch.dtype) -> GPT:
    """A copy with the values that GGUF holds: vectors and positions are as they were."""
    rounded = copy.deepcopy(model)
    for name, parameter in rounded.named_parameters():
        if parameter.dim() > 1 and name != "wpe.weight":
            parameter.copy_(parameter.to(dtype))
    return rounded


def assert_loaded(loaded: GPT, model: GPT, dtype: torch.dtype) -> None:
    """All parameters, rounded to `dtype`; rows of the padded vocabulary are zero."""
    assert dict(loaded.named_parameters()).keys() == dict(model.named_parameters()).keys()
    for name, parameter in loaded.named_parameters():
        rows = model.config.vocab_size if name in ("wte.weight", "lm_head.weight") else None
        expected = model.get_parameter(name)[:rows].to(dtype).float()
        assert torch.equal(parameter[:rows], expected), name
        assert rows is None or not parameter[rows:].any(), name


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("transformers", "accelerate", "gguf")),
    reason="needs the libraries transformers, accelerate and gguf",
)
@pytest.mark.parametrize(
    "options",
    [{}, {"tie": False, "bias": False, "n_inner": 48}],
    ids=["gpt2", "untied-unbiased-narrow"],
)
def test_transformers_gives_the_same_logits_and_ids(tokenizer, tmp_path, options):
    """In float64 the logits are the same function's; in float32 ours are as exact as theirs. Of
    GGUF, in each type, it makes the same ids, logits and greedy text as of its own format."""
    model = build(tokenizer, **options)
    export(model, tokenizer, tmp_path / "exported")
    rounded = {}
    for name, dtype in DTYPES.items():
        folder = tmp_path / f"gguf-{name}"
        export(model, tokenizer, folder, dtype=dtype, file_format="gguf")
        assert {path.name for path in folder.iterdir()} == {
            *("README.md", "config.json", "generation_config.json", "model.gguf"),
            *("tokenizer.json", "tokenizer_config.json"),
        }
        rounded[folder.name] = with_rounded_matrices(model, dtype)
    ids = torch.randint(0, tokenizer.vocab_size, (3, 24))
    save_file({"ids": ids}, tmp_path / "ids.safetensors")
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    done = run_python(
        str(ROOT / "tests/gpt2/weights/children/exported_gpt2.py"),
        *(str(tmp_path / name) for name in ("exported", "texts.json", "")),
        cwd=tmp_path,
        PYTHONPATH="",  # our package `kernels` is not the one that transformers knows
        HF_HUB_OFFLINE="1",
    )
    assert done.returncode == 0, done.stderr
    theirs = load_file(tmp_path / "logits.safetensors")
    with torch.no_grad():
        ours: Tensor = model(ids)[0]
        exact: Tensor = model.double()(ids)[0]
    model.float()
    assert theirs["fp64"].shape == (3, 24, tokenizer.vocab_size)
    assert (theirs["fp64"] - exact).abs().max() < 64 * torch.finfo(
        torch.float64
    ).eps * exact.abs().max()
    for got, plain in ((ours, theirs["fp32"]), (theirs["fp32"], ours)):
        quantity = judge("logits", got, plain, exact)
        assert quantity.within, quantity
    answers = json.loads((tmp_path / "answers.json").read_text())
    assert answers["ids"] == [tokenizer.encode(text, allow_special=True) for text in TEXTS]
    assert answers["texts"] == TEXTS
    for name, (text, token_ids) in answers["gguf"].items():
        assert token_ids == answers["ids"]
        torch.testing.assert_close(theirs[name], rounded[name](ids)[0])
        prompt = torch.tensor([tokenizer.encode("Once upon")])
        greedy = generate(rounded[name], prompt, 12, temperature=0, stop_id=tokenizer.eot_id)
        assert text == tokenizer.decode(greedy[0].tolist())
    assert answers["gguf"].keys() == rounded.keys()
    assert answers["eos"] == [tokenizer.eot_id] * 3
    assert answers["max length"] == 24
    assert answers["dtype"] == "torch.float32"
    assert answers["tied"] == model.config.tie
    assert answers["complaints"] == {}
    # What transformers writes is what it read, and opens here.
    first, second = (
        json.loads((tmp_path / folder / "tokenizer.json").read_text(encoding="utf-8"))
        for folder in ("exported", "saved")
    )
    assert first == second
    assert Tokenizer.load(tmp_path / "saved").hash == tokenizer.hash


@pytest.mark.parametrize("dtype", DTYPES)
def test_llama_cpp_gives_the_same_ids_and_greedy_text(tmp_path, dtype):
    llama = pytest.importorskip("llama_cpp")
    main(Arguments("demo", str(tmp_path / "out"), dtype=dtype, format="gguf"))
    run = open_model("demo", device="cpu")
    theirs = llama.Llama(str(tmp_path / "out" / "model.gguf"), n_ctx=256, verbose=False)
    for text in TEXTS:
        found = theirs.tokenize(text.encode(), add_bos=True, special=True)
        assert found == run.tokenizer.encode(text, allow_special=True)
    prompt = run.tokenizer.encode("Once upon a time")
    written = list(islice(theirs.generate(prompt, temp=0.0, repeat_penalty=1.0), 40))
    greedy = generate(run.model, torch.tensor([prompt]), 40, temperature=0)
    assert written == greedy[0, len(prompt) :].tolist()


def test_a_run_comes_back_as_it_was(tokenizer, tmp_path, capsys):
    """The best checkpoint in fp32, the last in bf16, one by its step in fp16."""
    models = make_run(tmp_path / "run", tokenizer, {10: 3.0, 20: 2.0, 30: 2.5})
    assert torch.equal(load_pretrained(tmp_path / "run").wte.weight, models[20].wte.weight)
    for checkpoint, step, dtype in (("best", 20, "fp32"), ("last", 30, "bf16"), ("10", 10, "fp16")):
        out = tmp_path / "exports" / str(step)
        main(Arguments(str(tmp_path / "run"), str(out), dtype=dtype, checkpoint=checkpoint))
        assert f"step {step} written to {out}" in capsys.readouterr().out
        assert {path.name for path in out.iterdir()} == {
            *("README.md", "config.json", "generation_config.json", "model.safetensors"),
            *("tokenizer.json", "tokenizer_config.json"),
        }
        weights = load_file(out / "model.safetensors")
        assert {tensor.dtype for tensor in weights.values()} == {DTYPES[dtype]}
        assert (
            json.loads((out / "config.json").read_text())["n_ctx"] == models[10].config.block_size
        )
        assert weights["transformer.wte.weight"].shape == (tokenizer.vocab_size, 16)
        assert_loaded(load_pretrained(out), models[step], DTYPES[dtype])
        assert Tokenizer.load(out).hash == tokenizer.hash


def test_the_card_tells_data_tokens_and_perplexity_with_its_protocol(tokenizer, tmp_path):
    yaml = pytest.importorskip("yaml")
    make_run(tmp_path / "run", tokenizer, {20: 2.0, 30: 2.5})
    score = {"loss": 2.5, "perplexity": 12.182, "bits_per_byte": 1.25, "tokens": 1000, "bytes": 99}
    train = {"tokens": 5120, "documents": 12, "bytes": 9999}
    data = {"name": "stories", "held_out": "test: one in 20", "splits": {"train": train}}
    test = {**score, "context": 24, "stride": 12}
    result = {"step": 20, "val_loss": 2.0, "test": test, "data": data}
    (tmp_path / "run" / "result.json").write_text(json.dumps(result))

    def card(run: str, out: str, **options: str) -> tuple[dict[str, Any], str]:
        main(Arguments(str(tmp_path / run), str(tmp_path / out), **options))
        text = (tmp_path / out / "README.md").read_text(encoding="utf-8")
        _, head, body = text.split("---\n", 2)
        return yaml.safe_load(head), " ".join(body.split())

    head, text = card("run", "best", license="cc-by-sa-4.0")
    assert head["license"] == "cc-by-sa-4.0"
    assert str(tmp_path) not in text
    per_step = settle(TrainConfig()).sequences_per_step * settle(TrainConfig()).seq_len
    for said in (
        "# best A GPT-2 of",
        "Weights of `run`, step 20, stored in fp32.",
        "`stories`, 5,120 tokens, 12 documents and 9,999 bytes of text for training.",
        "Held out: test: one in 20.",
        f"Trained on {20 * per_step:,} tokens: 20 steps of {per_step:,}, "
        f"{20 * per_step / 5120:.2f} epochs",
        "**12.18** on the test split: 2.5000 nats per token, 1.2500 bits per byte.",
        "each of 1,000 tokens is scored once",
        "of 24 tokens begin 12 tokens apart",
    ):
        assert said in text, said
    head, text = card("run", "last", checkpoint="last")
    assert head["license"] == "unknown"
    assert "Not measured with these weights." in text, "the result is that of another step"
    assert "Data: `no.txt`." in text
    assert "Not recorded with these weights." in card("best", "again", format="gguf")[1]


def test_a_model_is_uploaded_whole_or_refused(tokenizer, tmp_path, capsys, monkeypatch):
    hf = pytest.importorskip("huggingface_hub.cli.hf").main
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "of-me")
    make_run(Path("run"), tokenizer, {1: 3.0})
    repositories: dict[str, dict[str, bytes]] = {}
    with hub(repositories, "models") as (address, _):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        main(Arguments("run", "out", license="mit", push="me/small"))
        assert "uploaded: https://huggingface.co/me/small/commit/c0ffee" in capsys.readouterr().out
        with pytest.raises(
            ValueError, match=r"did not take you/small \(.*\)\. It is whole in othe"
        ):
            main(Arguments("run", "other", license="mit", push="you/small"))
        monkeypatch.setenv("HF_TOKEN", "of-you")
        with pytest.raises(
            ValueError, match=r"did not take me/small \(.*hf upload --private me/small third "
        ):
            main(Arguments("run", "third", license="mit", push="me/small"))
        monkeypatch.setenv("HF_TOKEN", "of-me")
        monkeypatch.setattr(sys, "argv", ["hf", "upload", "--private", "me/again", "third", "."])
        with pytest.raises(SystemExit, match="0"):
            hf()
    files = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    assert repositories["me/small"] == files
    assert repositories["me/again"].keys() == files.keys()
    with pytest.raises(ValueError, match=r"--push small is no model of the hub: give OWNER/NAME"):
        main(Arguments("run", "x", push="small"))
    with pytest.raises(ValueError, match=r"--license My Own: give the hub's name of it"):
        main(Arguments("run", "x", license="My Own"))
    assert not Path("x").exists()


def test_nothing_is_overwritten(tokenizer, tmp_path):
    make_run(tmp_path / "run", tokenizer, {1: 3.0})
    (tmp_path / "out").mkdir()
    main(Arguments(str(tmp_path / "run"), str(tmp_path / "out")))  # an empty folder
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(ValueError, match="out is not an empty folder, and nothing is overwritten"):
        main(Arguments(str(tmp_path / "run"), str(tmp_path / "out")))
    with pytest.raises(ValueError, match="no checkpoint '7'"):
        main(Arguments(str(tmp_path / "run"), str(tmp_path / "x"), checkpoint="7"))
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"mlp": "swiglu"}, "mlp=swiglu .* its MLP is two linear layers with GELU between them"),
        ({"norm": "quicknorm"}, "norm=quicknorm .* its norms are LayerNorms"),
        ({"norm_position": "post"}, "norm_position=post .* its norms stand before the sub-layers"),
        ({"positions": "sinusoidal"}, "positions=sinusoidal .* a table of learned vectors"),
        ({"window": 8}, "window=8 .* its attention sees every earlier position"),
    ],
    ids=str,
)
def test_what_gpt2_cannot_be_is_refused_with_the_reason(tokenizer, tmp_path, options, reason):
    with pytest.raises(ValueError, match=f"{reason}.*"):
        export(build(tokenizer, **options), tokenizer, tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_gguf_without_its_library_is_refused_and_nothing_is_left(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[gguf\]'"):
        export(build(tokenizer), tokenizer, tmp_path / "out", file_format="gguf")
    assert not any(tmp_path.iterdir())


def test_weights_that_do_not_fit_are_refused_by_name(tokenizer, tmp_path):
    model = build(tokenizer)
    with torch.no_grad():
        model.h[1].mlp.c_fc.bias[3] = 7e4
    message = r"transformer\.h\.1\.mlp\.c_fc\.bias has values up to 7e\+04, which torch\.float16"
    with pytest.raises(ValueError, match=message):
        export(model, tokenizer, tmp_path / "out", dtype=torch.float16)
    assert not any(tmp_path.iterdir())
    other = dataclasses.replace(model.config, vocab_size=300)
    with pytest.raises(ValueError, match="the model has 300 tokens and the tokenizer 290"):
        export(GPT(other), tokenizer, tmp_path / "out")
