"""Whole-split evaluation: each token once, with the context that the stride promises."""

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt2.data.sources import open_source
from gpt2.evaluate.__main__ import Arguments, main
from gpt2.evaluate.perplexity import evaluate, sliding_windows
from gpt2.evaluate.word_perplexity import DETOKENISERS, read_documents, word_perplexity
from tests.gpt2.data.streams import ArrayStream
from tests.gpt2.stand_ins import Bigram, byte_tokenizer, random_bigram, write_run

CONTEXT, BOS = 8, 0


def _stream(n: int) -> ArrayStream:
    return ArrayStream(np.random.default_rng(n).integers(1, 30, size=n))


@pytest.mark.parametrize("n", [1, 7, 8, 9, 16, 61])
@pytest.mark.parametrize("stride", [1, 3, 7, 8])
def test_each_token_is_scored_once_with_the_context_that_stride_promises(n, stride):
    stream = _stream(n)
    before = [BOS, *stream.ids.tolist()]  # before[i] stands before token i
    scored = 0
    windows = sliding_windows(stream, context=CONTEXT, stride=stride, batch_size=3, bos_id=BOS)
    for x, y in windows:
        for inputs, targets in zip(x.tolist(), y.tolist(), strict=True):
            for place, target in enumerate(targets):
                if target == -100:
                    continue
                assert target == stream.ids[scored]
                seen = inputs[: place + 1]
                assert seen == before[scored + 1 - len(seen) : scored + 1]
                first = max(0, math.ceil((scored + 1 - CONTEXT) / stride))  # window that holds it
                assert len(seen) == scored + 1 - first * stride
                scored += 1
    assert scored == n


@pytest.mark.parametrize("stride", [None, 1, 3, 8])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_a_bigram_has_its_exact_perplexity_under_every_stride(stride, batch_size):
    model, stream = random_bigram(30, CONTEXT), _stream(100)
    result = evaluate(model, stream, bos_id=BOS, batch_size=batch_size, stride=stride)
    ids = [BOS, *stream.ids.tolist()]
    nll = -model.log_p[ids[:-1], ids[1:]].sum().item()
    assert result.loss == pytest.approx(nll / 100, rel=1e-6)
    assert result.perplexity == pytest.approx(math.exp(nll / 100), rel=1e-6)
    assert result.bits_per_byte == pytest.approx(nll / math.log(2) / stream.n_bytes, rel=1e-6)
    assert (result.tokens, result.context, result.stride) == (100, CONTEXT, stride or CONTEXT)


def test_a_part_is_scored_without_bits_per_byte():
    model = random_bigram(30, CONTEXT)
    part = evaluate(model, _stream(100), bos_id=BOS, batch_size=1, max_tokens=20)
    assert part.tokens == 24  # three windows
    assert part.bits_per_byte is None
    assert part.bytes is None


@pytest.mark.parametrize("stride", [0, 9])
def test_a_stride_that_leaves_tokens_out_is_refused(stride):
    with pytest.raises(ValueError, match=f"--stride {stride} does not fit: give 1 to 8"):
        evaluate(random_bigram(30, 8), _stream(20), bos_id=BOS, batch_size=1, stride=stride)


def test_an_empty_split_is_refused():
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate(random_bigram(30, 8), _stream(0), bos_id=BOS, batch_size=1)


def test_word_perplexity_divides_by_the_original_words_and_lines():
    documents = [" = Sea = \n It was 1 @,@ 000 m deep . \n", " \n The end \n"]
    plain = ["= Sea =\nIt was 1,000 m deep.\n", "\nThe end\n"]
    tokenizer = byte_tokenizer()
    uniform = Bigram(torch.full((257, 257), 1 / 257), block_size=16)
    for rules, read in (("none", documents), ("wikitext", plain)):
        result = word_perplexity(uniform, tokenizer, documents, rules=rules, stride=5, batch_size=2)
        assert result.words == 3 + 8 + 2 + 4  # the last are the lines' <eos>
        assert result.bytes == sum(map(len, documents))
        assert result.tokens == sum(map(len, read)) + 2  # and <|endoftext|> after each document
        expected = result.tokens * math.log(257)
        assert result.nll == pytest.approx(expected, rel=1e-6)
        assert result.word_perplexity == pytest.approx(math.exp(expected / 17), rel=1e-5)


@pytest.mark.parametrize(
    ("rules", "text", "plain"),
    [
        ("wikitext", " a two @-@ part , 3 @.@ 5 to 1 @,@ 000 ? ", "a two-part, 3.5 to 1,000?"),
        ("wikitext", ' as " Craig " , in " It " . ', 'as "Craig", in "It".'),
        ("wikitext", " ( see [ 2 ] ; 46 % ) : $ 5 \n", "(see [2]; 46%): $5\n"),
        ("wikitext", " Fu 's ; don 't ; boys ' toys \n", "Fu's; don't; boys' toys\n"),
        ("wikitext", " = = Career = = \n \n He left ... \n", "== Career ==\n\nHe left...\n"),
        ("wikitext", " at 40 ° north , by Chang 'an / Xi ", "at 40° north, by Chang 'an / Xi"),
        ("wikitext", ' a lone " mark ', 'a lone " mark'),
        ("ptb", " he did n't say it 's $ N million \n", "he didn't say it's $N million\n"),
        ("lm1b", 'The " deal " isn \'t done , he said .', 'The "deal" isn\'t done, he said.'),
        ("none", " a , b ", " a , b "),
    ],
)
def test_detokenisers_join_what_was_cut(rules, text, plain):
    assert DETOKENISERS[rules](text) == plain


def test_detokenising_wikitext_changes_no_letter_and_no_digit(real_data):
    for name in ("wiki.test.raw.gz", "wiki.valid.tokens.gz"):
        path = real_data / "wikitext-2" / name
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            text = file.read()
        plain = DETOKENISERS["wikitext"](text)
        letters = text.replace("@-@", "-").replace("@,@", ",").replace("@.@", ".")
        assert "".join(plain.split()) == "".join(letters.split())
        assert plain.count("\n") == text.count("\n")
        assert " ," not in plain
        assert "@-@" not in plain


@pytest.mark.parametrize(
    ("name", "split", "words"),
    [
        ("wiki.test.tokens.gz", "test", 245_569),
        ("wiki.test.raw.gz", "test", 245_569),
        ("wiki.valid.tokens.gz", "valid", 217_646),
    ],
)
def test_wikitext_has_its_published_number_of_words(real_data, tmp_path, name, split, words):
    documents = read_documents(
        open_source(str(real_data / "wikitext-2" / name), cache_dir=tmp_path), split
    )
    assert len(documents) > 50
    assert sum(len(text.split()) + text.count("\n") for text in documents) == words


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "hellaswag", "stride": 4}, "--task hellaswag has no windows"),
        ({"task": "hellaswag", "split": "test"}, "--task hellaswag is of one split"),
        ({"task": "lambada", "detokenise": "ptb"}, "--detokenise goes with --task wikitext"),
        ({"task": "wikitext", "limit": 5}, "leave out --limit"),
        ({}, "nowhere does not exist: give a folder of a run"),
    ],
)
def test_options_that_would_not_be_heeded_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        main(Arguments(run="nowhere", **options))


@pytest.mark.parametrize("task", ["wikitext", "perplexity"])
def test_a_text_has_one_score_in_every_container(tmp_path, capsys, task):
    """And the command says what it read, and what not."""
    lines = [" \n", " = First = \n", " \n", " Some text of it . \n", " \n", " = Second = \n", " \n"]
    lines += [" Other text , which is longer . \n"] * 9
    write_run(tmp_path / "run", Path("no.txt"), byte_tokenizer(), block_size=32)
    scores = []
    for name in ("a.test.tokens", "b.test.jsonl", "c.test.csv"):
        folder = tmp_path / name[0]
        folder.mkdir()
        (folder / "notes.pdf").touch()
        rows = [line if line.strip() else "" for line in lines]
        content = {
            "tokens": "".join(lines),
            "jsonl": "".join(json.dumps({"text": row}) + "\n" for row in rows),
            "csv": "text\r\n" + "".join(f'"{row}"\r\n' for row in rows),
        }[name[7:]]
        (folder / name).write_text(content, encoding="utf-8")
        options = {"cache_dir": str(tmp_path / "cache"), "device": "cpu", "json": True}
        main(Arguments(str(tmp_path / "run"), task=task, data=str(folder), **options))
        said = capsys.readouterr()
        assert "left out: notes.pdf (of no kind that is read)" in said.err
        scores.append(json.loads(said.out) | {"what": ""})
    assert scores[0] == scores[1] == scores[2]
    assert scores[0]["tokens"] > 300
