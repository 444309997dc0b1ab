"""Scores of given tokens, and the tasks that rest on them: HellaSwag and LAMBADA."""

import codecs
import gzip
import json
import math

import numpy as np
import pytest
import torch

from gpt2.config import GPTConfig
from gpt2.evaluate.scoring import Request, score
from gpt2.evaluate.tasks import hellaswag, lambada, read_rows
from gpt2.model import GPT
from gpt2.tokenizer import Tokenizer
from tests.gpt2.stand_ins import Bigram, byte_tokenizer, loud_model


def _gpt() -> GPT:
    return loud_model(vocab_size=30, block_size=8).double()


def _requests(count: int, longest: int) -> list[Request]:
    rng = np.random.default_rng(0)
    requests = []
    for _ in range(count):
        ids = rng.integers(0, 30, size=rng.integers(2, longest + 1)).tolist()
        requests.append(Request(ids, first=int(rng.integers(1, len(ids)))))
    return requests


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_scores_are_those_of_each_sequence_alone(batch_size):
    model, requests = _gpt(), _requests(25, longest=9)
    scores = score(model, requests, batch_size=batch_size)
    for request, scored in zip(requests, scores, strict=True):
        logits = model(torch.tensor([request.ids[:-1]]))[0][0]
        targets = torch.tensor(request.ids[1:])
        expected = logits.log_softmax(dim=1)[range(len(targets)), targets]
        keep = slice(request.first - 1, None)
        np.testing.assert_allclose(scored.logprob, expected[keep].detach(), atol=1e-5)
        assert scored.greedy.tolist() == (logits.argmax(dim=1) == targets)[keep].tolist()
        assert scored.total == pytest.approx(expected[keep].sum().item(), abs=1e-4)


def test_what_does_not_fit_loses_its_beginning_and_a_long_text_is_scored_in_stretches():
    model = _gpt()
    ids = np.random.default_rng(1).integers(0, 30, size=21).tolist()

    def from_context(context, targets):
        logits = model(torch.tensor([[*context, *targets[:-1]]]))[0][0, len(context) - 1 :]
        return logits.log_softmax(dim=1)[range(len(targets)), targets].tolist()

    [short] = score(model, [Request(ids, first=18)], batch_size=2)
    np.testing.assert_allclose(short.logprob, from_context(ids[12:18], ids[18:]), atol=1e-5)
    [long] = score(model, [Request(ids, first=1)], batch_size=2)
    expected = [
        *from_context(ids[:1], ids[1:9]),
        *from_context(ids[8:9], ids[9:17]),
        *from_context(ids[12:17], ids[17:]),
    ]
    np.testing.assert_allclose(long.logprob, expected, atol=1e-5)


def _letters(tokenizer: Tokenizer, p: dict[str, float]) -> Bigram:
    """A model that gives these letters these probabilities after anything, and the rest evenly."""
    row = torch.full((257,), (1 - sum(p.values())) / (257 - len(p)))
    for letter, value in p.items():
        row[tokenizer.encode(letter)[0]] = value
    return Bigram(row.expand(257, -1), block_size=64)


def _row(endings: list[str], label: int) -> dict:
    return {"activity_label": "Sea", "ctx": "A wave.", "endings": endings, "label": label}


def test_hellaswag_takes_the_sum_and_the_mean_over_characters():
    tokenizer = byte_tokenizer()
    model = _letters(tokenizer, {"x": 0.5, "y": 0.2, " ": 0.25})
    # log p: " x" is the largest sum; "xxxx" the largest per character: (log .25 + 4 log .5) / 4.
    endings = ["yy", "x", "xxxx", "y"]
    rows = [_row(endings, 1), _row(endings, 2), _row(endings, 1), _row(endings, 0)]
    result = hellaswag(model, tokenizer, rows, batch_size=3)
    assert result.acc == 0.5
    assert result.acc_norm == 0.25
    assert result.acc_stderr == pytest.approx(math.sqrt(0.25 / 3))
    assert "per character" in result.protocol
    assert "cleaned beforehand" in result.protocol


def test_hellaswag_reads_original_rows_as_lm_eval_does():
    tokenizer = byte_tokenizer()
    model = _letters(tokenizer, {"x": 0.5, " ": 0.25})
    original = {
        "activity_label": "Sea",
        "ctx_a": "How to swim [title] Jump.",
        "ctx_b": "then",
        "ctx": "not read",
        "endings": ["[substeps] x", "y [step] y", "z", "xy"],
        "label": "0",
    }
    result = hellaswag(model, tokenizer, [original], batch_size=3)
    assert result.acc == 1  # "x" after its marker is gone
    assert "cleaned as lm-eval does" in result.protocol


def test_hellaswag_scores_the_spaces_that_end_the_question():
    tokenizer = byte_tokenizer()
    model = _letters(tokenizer, {"x": 0.5, "y": 0.1, " ": 0.25})
    row = {"activity_label": "Sea", "ctx_a": "Jump. [step]", "ctx_b": "", "label": 1}
    # After two spaces that count, "yyy" is the larger per character; after one, "x".
    result = hellaswag(model, tokenizer, [row | {"endings": ["x", "yyy", "z", "z"]}], batch_size=3)
    assert (result.acc, result.acc_norm) == (0, 1)


def test_lambada_scores_all_spaces_before_the_word():
    tokenizer = byte_tokenizer()
    model = _letters(tokenizer, {"x": 0.5, " ": 0.25})
    result = lambada(model, tokenizer, [{"text": "Look  x"}], batch_size=1)
    assert result.word_perplexity == pytest.approx(1 / (0.25 * 0.25 * 0.5), rel=1e-5)


def test_lambada_by_word_and_by_token():
    tokenizer = byte_tokenizer()
    table = torch.full((257, 257), 1e-4)
    links = [(" ", "c", 0.6), ("c", "a", 0.5), ("c", "o", 0.3), ("a", "t", 0.8), ("o", "t", 0.8)]
    for before, after, p in links:
        table[tokenizer.encode(before)[0], tokenizer.encode(after)[0]] = p
    table[tokenizer.encode("k")[0], tokenizer.encode(" ")[0]] = 0.9
    table /= table.sum(dim=1, keepdim=True)
    model = Bigram(table, block_size=64)

    def p(before, after):
        return float(table[tokenizer.encode(before)[0], tokenizer.encode(after)[0]])

    rows = [{"context": "Look", "continuation": "cat"}, {"text": "Have a look cot"}]
    result = lambada(model, tokenizer, rows, batch_size=2)
    start = p("k", " ") * p(" ", "c")
    cat, cot = start * p("c", "a") * p("a", "t"), start * p("c", "o") * p("o", "t")
    assert result.word_acc == 0.5
    assert result.token_acc == 1
    assert result.word_perplexity == pytest.approx((cat * cot) ** -0.5, rel=1e-5)
    assert result.token_perplexity == pytest.approx((p("a", "t") * p("o", "t")) ** -0.5, rel=1e-5)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_rows_come_from_json_lines(tmp_path, name):
    content = "".join(json.dumps({"n": i}) + "\n\n" for i in range(5)).encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else codecs.BOM_UTF8 + content)
    assert [row["n"] for row in read_rows(str(path), "lambada")] == [0, 1, 2, 3, 4]
    assert [row["n"] for row in read_rows(str(path), "lambada", limit=2)] == [0, 1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.jsonl", None, "no such file"),
        ("a.jsonl", b'{"a": 1}\n{"a": \n', "line 2: not JSON"),
        ("b.jsonl", b"[1]\n", "line 1: a list; expected an object"),
        (
            "c.jsonl.gz",
            gzip.compress(b'{"a": 1}\n' * 999, mtime=0)[:-20],
            "is not a whole gzip file",
        ),
        ("d.jsonl", b'{"a": "\xff"}\n', "is not UTF-8: line 1, its byte 7"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        list(read_rows(str(path), "lambada"))
    assert name in str(raised.value)


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        (hellaswag, {"text": "x"}, "row 2 is not of HellaSwag: it has no field 'activity_label'"),
        (hellaswag, _row(["a", "b", "c"], 0), "row 2 .* four endings"),
        (hellaswag, _row(["a", "b", "c", ""], 0), "row 2 .* not empty"),
        (hellaswag, _row(["a", "b", "c", "d"], 4), "row 2 .* label of 0 to 3"),
        (lambada, {"context": "x"}, "row 2 is not of LAMBADA: it has no field 'continuation'"),
        (lambada, {"text": "word"}, "row 2 is not of LAMBADA: neither the context"),
        (lambada, {"text": "  word"}, "row 2 is not of LAMBADA: neither the context"),
    ],
)
def test_rows_of_another_form_are_refused_by_number(task, row, message):
    tokenizer = byte_tokenizer()
    good = _row(list("abcd"), 0) | {"text": "one two"}
    with pytest.raises(ValueError, match=message):
        task(_letters(tokenizer, {}), tokenizer, [good, row], batch_size=1)
    with pytest.raises(ValueError, match="no rows"):
        task(_letters(tokenizer, {}), tokenizer, [], batch_size=1)


def test_an_untrained_model_is_at_chance_on_real_rows(real_data):
    tokenizer = Tokenizer.load(real_data / "gpt2-bpe")
    torch.manual_seed(0)
    shape = {"n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 128}
    model = GPT(GPTConfig(**shape, vocab_size=tokenizer.vocab_size)).eval()
    rows = read_rows(str(real_data / "hellaswag/hellaswag_val.jsonl.gz"), "hellaswag", limit=100)
    result = hellaswag(model, tokenizer, rows, batch_size=32)
    assert result.rows == 100
    assert abs(result.acc_norm - 0.25) < 4 * result.acc_norm_stderr
    rows = read_rows(str(real_data / "lambada/lambada_openai_test.jsonl.gz"), "lambada", limit=50)
    result = lambada(model, tokenizer, rows, batch_size=32)
    assert result.word_acc == 0
    assert result.token_perplexity == pytest.approx(tokenizer.vocab_size, rel=0.1)
