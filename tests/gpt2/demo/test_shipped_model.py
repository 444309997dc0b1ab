"""The model that ships: loaded by the name `demo`, it writes what it was trained to write."""

import gzip
import json
import math
import re

import pytest
import torch

from gpt2.evaluate.perplexity import evaluate
from gpt2.generate.decoding import generate
from gpt2.runs.run import Run
from gpt2.weights.open_model import SHIPPED, open_model


@pytest.fixture(scope="module")
def run() -> Run:
    return open_model("demo", device="cpu")


def test_demo_is_a_run_for_every_tool(run):
    assert run.folder == SHIPPED
    assert run.step == 7800
    assert not run.model.training
    assert run.tokenizer.vocab_size == run.model.config.vocab_size == 4096


def test_it_fits_the_repository():
    files = {path.name: path.stat().st_size for path in SHIPPED.iterdir()}
    assert sum(files.values()) < 12.5e6
    run = json.loads((SHIPPED / "run.json").read_text(encoding="utf-8"))
    assert run["train"]["data"] == "books", "no path of the machine that it was trained on"


def test_it_writes_english_sentences(run):
    prompt = torch.tensor([run.tokenizer.encode("Once upon a time")])
    generator = torch.Generator().manual_seed(3)
    ids = generate(run.model, prompt, 120, temperature=0.8, generator=generator)[0].tolist()
    words = re.findall(r"[a-z]+", run.tokenizer.decode(ids).lower())
    common = {"the", "and", "of", "to", "a", "i", "he", "she", "it", "in", "that", "was", "you"}
    assert 0.15 < sum(word in common for word in words) / len(words) < 0.6
    assert len(set(words)) / len(words) > 0.35


def test_its_figure_on_books_it_has_not_seen(run, real_data, tmp_path):
    """The beginning of the valid split, which was no part of the training: near its known loss."""
    from gpt2.data.prepare import prepare

    if not (real_data / "books").is_dir():
        pytest.skip("real data: no books/ in GPT2_TEST_DATA")
    with gzip.open(real_data / "books/books-valid.txt.gz", "rt", encoding="utf-8") as file:
        (tmp_path / "valid.txt").write_text(file.read(50_000), encoding="utf-8")
    tokenizer = str(SHIPPED / "tokenizer.json")
    prepared = prepare(str(tmp_path / "valid.txt"), tokenizer=tokenizer, cache_dir=tmp_path)
    split = prepared.splits["valid"]
    result = evaluate(run.model, split, bos_id=run.tokenizer.eot_id, batch_size=8)
    known = json.loads((SHIPPED / "result.json").read_text())["val_loss"]
    assert math.isclose(result.loss, known, rel_tol=0.05)
