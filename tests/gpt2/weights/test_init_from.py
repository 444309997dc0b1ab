"""Runs that begin from trained weights: --init-from."""

import dataclasses
import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpt2.config import PORTABLE, GPTConfig, TrainConfig
from gpt2.evaluate.perplexity import evaluate
from gpt2.model import GPT
from gpt2.runs.run import load_run
from gpt2.tokenizer import Tokenizer
from gpt2.training.run_training import Plan, begin, build, make_plan, prepare_text
from gpt2.training.trainer import Trainer
from gpt2.weights.export import export
from gpt2.weights.open_model import open_model
from gpt2.weights.pretrained import load_pretrained
from tests.gpt2.stand_ins import ROOT, STORIES, run_python

SHORT = {
    "steps": 3, "batch_size": 2, "grad_accum": 1, "eval_every": 3, "checkpoint_every": 3,
    "device": "cpu", "dtype": "fp32", "compile": False,
}  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in Hugging Face's format, with an MLP of unusual width; the text lies beside it."""
    monkeypatch.chdir(tmp_path)
    Path("stories.txt").write_text(STORIES, encoding="utf-8")
    tokenizer = Tokenizer.train([STORIES], 300, processes=1)
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_inner": 40, "block_size": 32}
    model = GPT(GPTConfig(**shape, vocab_size=tokenizer.vocab_size, tie=False))
    export(model, tokenizer, "weights/stories")
    return Path("weights/stories")


def settings(**options: object) -> TrainConfig:
    given = {"data": "stories.txt", **SHORT, **options}
    return TrainConfig(**given)  # type: ignore[arg-type]


def start(config: TrainConfig) -> tuple[Plan, Trainer]:
    """What train.py does before the first step."""
    plan = make_plan(config)
    prepared = prepare_text(plan)
    trainer = build(plan, prepared)
    plan.folder.mkdir(parents=True, exist_ok=True)
    begin(plan, prepared, trainer)
    return plan, trainer


def test_a_run_begins_with_the_weights_and_goes_on_without_their_files(checkpoint):
    expected = load_pretrained(checkpoint)
    plan, trainer = start(settings(init_from=str(checkpoint), lr=1e-3, warmup_steps=1))
    assert plan.folder == Path("runs/stories.txt-stories")
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, expected.get_parameter(name)), name
    assert trainer.bos_id == Tokenizer.load(checkpoint).eot_id
    before = evaluate(expected, trainer.valid, bos_id=trainer.bos_id, batch_size=4).loss
    trainer.fit()
    shutil.rmtree(checkpoint)
    _, resumed = start(TrainConfig(resume=str(plan.folder)))
    assert resumed.step == 3
    for name, parameter in resumed.model.named_parameters():
        assert torch.equal(parameter, trainer.model.get_parameter(name)), name
    assert load_run(plan.folder, device="cpu").model.config.n_inner == 40
    assert resumed.best_val_loss < before


def test_fine_tuning_has_its_own_defaults(checkpoint):
    asked = TrainConfig(data="stories.txt", init_from=str(checkpoint), device="cpu")
    config = make_plan(asked).settings
    assert (config.lr, config.min_lr, config.optimizer) == (5e-5, 5e-6, "adamw")
    assert (config.seq_len, config.vocab_size, config.n_layer, config.tie) == (32, 300, 2, False)
    given = make_plan(settings(init_from=str(checkpoint), lr=1e-3, seq_len=16)).settings
    assert (given.lr, given.steps, given.seq_len) == (1e-3, 3, 16)


def test_a_shorter_context_cuts_the_positions(checkpoint):
    _, trainer = start(settings(init_from=str(checkpoint), seq_len=16))
    assert torch.equal(trainer.model.wpe.weight, load_pretrained(checkpoint).wpe.weight[:16])


def test_a_run_of_any_kind_can_be_begun_from(checkpoint):
    modern = {"norm": "quicknorm", "mlp": "swiglu", "positions": "sinusoidal", "bias": False}
    shape = {"n_layer": 1, "n_head": 2, "n_embd": 16, "seq_len": 16, "vocab_size": 280, "window": 8}
    first, trainer = start(settings(**modern, **shape, out="first"))
    trainer.fit()
    _, second = start(settings(init_from="first", out="second", seq_len=24, dropout=0.1))
    best = load_run(first.folder, device="cpu").model
    for name, parameter in second.model.named_parameters():
        assert torch.equal(parameter, best.get_parameter(name)), name
    changed = {"block_size": 24, "dropout": 0.1}
    assert second.model.config == dataclasses.replace(
        best.config, **changed, **{name: getattr(second.model.config, name) for name in PORTABLE}
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "demo"}, "--preset demo and --init-from weights/stories both say what model"),
        ({"n_layer": 3}, "--n-layer 3 contradicts --init-from weights/stories, which has 2"),
        ({"vocab_size": 500}, "--vocab-size 500 contradicts"),
        ({"mlp": "swiglu"}, "--mlp swiglu contradicts .* has gelu: leave it out"),
        ({"bias": False}, "--bias False contradicts"),
        ({"seq_len": 33}, "--seq-len 33 is longer than the 32 learned positions"),
        ({"tokenizer": "other"}, "the tokenizer other has 280 tokens, and weights/stories has 300"),
        ({"tokenizer": "more"}, "the tokenizer more has 301 tokens, and weights/stories has 300"),
    ],
    ids=str,
)
def test_contradictions_are_refused_before_anything_is_written(checkpoint, options, message):
    Tokenizer.train([STORIES], 280, processes=1).save("other/tokenizer.json")
    Tokenizer.train([STORIES], 301, processes=1).save("more/tokenizer.json")
    with pytest.raises(ValueError, match=message):
        make_plan(settings(init_from=str(checkpoint), **options))
    assert not Path("runs").exists()


def test_a_default_that_is_given_contradicts_too(checkpoint):
    asked = settings(init_from=str(checkpoint))
    assert make_plan(asked).settings.tie is False
    with pytest.raises(ValueError, match=r"--tie True contradicts .* has False: leave it out"):
        make_plan(asked, {"init_from", "tie"})


def test_a_padded_vocabulary_is_cut_to_the_tokens(checkpoint, capsys):
    expected = load_pretrained(checkpoint)
    weights = load_file(checkpoint / "model.safetensors")
    for name in ("transformer.wte.weight", "lm_head.weight"):
        weights[name] = torch.cat([weights[name], torch.full((20, 16), 9.0)])  # to 64's multiple
    save_file(weights, checkpoint / "model.safetensors")
    description = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(description | {"vocab_size": 320}))
    plan, trainer = start(settings(init_from=str(checkpoint)))
    assert "padded: 300 tokens in 320 rows" in capsys.readouterr().out
    for model in (trainer.model, open_model(checkpoint, device="cpu").model):
        assert model.config.vocab_size == 300
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, expected.get_parameter(name)), name
    trainer.fit()
    assert load_run(plan.folder, device="cpu").model.config.vocab_size == 300


@pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="needs the library transformers"
)
def test_a_model_comes_back_from_transformers(checkpoint):
    """Opened there, its tokenizer used and given a token, its weights trained, saved in shards."""
    done = run_python(
        str(ROOT / "tests/gpt2/weights/children/fine_tuned_gpt2.py"),
        *map(str, (checkpoint.resolve(), Path("tuned").resolve())),
        PYTHONPATH="",  # our package `kernels` is not the one that transformers knows
        HF_HUB_OFFLINE="1",
    )
    assert done.returncode == 0, done.stderr
    theirs = load_file("tuned/expected.safetensors")
    assert len(list(Path("tuned").glob("model-*.safetensors"))) > 1
    _, trainer = start(settings(init_from="tuned"))
    model = trainer.model.eval()
    assert model.config.vocab_size == 301
    assert not torch.equal(model.wpe.weight, load_pretrained(checkpoint).wpe.weight)
    logits, _ = model(theirs["ids"])
    assert (logits - theirs["logits"][..., :301]).abs().max() < 1e-5
    text = "<|user|>Story 7. <|endoftext|>"
    tokenizer = Tokenizer.load("tuned")
    assert tokenizer.encode(text, allow_special=True) == theirs["text"].tolist()


def test_weights_without_a_tokenizer_ask_for_one(checkpoint):
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"no tokenizer at .*by --tokenizer"):
        make_plan(settings(init_from=str(checkpoint)))


def test_damaged_weights_leave_no_run_behind(checkpoint):
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    plan = make_plan(settings(init_from=str(checkpoint)))
    prepared = prepare_text(plan)
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
        build(plan, prepared)
    assert not Path("runs").exists()
