"""Measures of generated text, against values worked out by hand and definitions"""

import math
import random

import pytest

from gpt2.compare_decoding import text_metrics
from gpt2.compare_decoding.text_metrics import (
    CopySearch,
    distinct,
    in_a_row,
    ngrams,
    repetition,
    words,
)
from gpt2.tokenizer import Tokenizer
from tests.gpt2.data.streams import document_stream


def test_words_are_lower_case_and_without_punctuation():
    assert words("Don't stop; it's 3.5 o\u2019clock -- she_said, \u00c9t\u00e9!") == [
        *("don't", "stop", "it's", "3", "5", "o\u2019clock", "she", "said", "\u00e9t\u00e9")
    ]
    assert words(" ... ") == []


def test_distinct_counts_within_texts_and_within_the_budget():
    texts = [["a", "b", "a"], ["b", "a", "b"]]
    assert distinct(texts, 1) == 2 / 6
    assert distinct(texts, 2) == 2 / 4  # ab, ba, ba, ab: none across the border
    assert distinct(texts, 2, budget=2) == 1
    assert math.isnan(distinct([["a"]], 2))


def test_repetition_is_the_share_seen_before_in_the_same_text():
    loop = ["x", "y"] * 5  # 7 runs of 4 words, 2 of them different
    assert repetition([loop]) == pytest.approx(5 / 7)
    assert repetition([loop, list("abcdef"), ["short"]]) == pytest.approx(5 / 14)
    assert repetition([list("abcd"), list("abcd")]) == 0
    assert math.isnan(repetition([["a"]]))


def _bleu(text, references):
    """BLEU-4 of one text by its definition, orders without a match counting 0.1."""
    total = 0.0
    for n in range(1, 5):
        own = ngrams(text, n)
        matched = sum(
            min(own.count(gram), max(ngrams(r, n).count(gram) for r in references))
            for gram in set(own)
        )
        total += math.log((matched or 0.1) / len(own)) / 4
    nearest = min((abs(len(r) - len(text)), len(r)) for r in references)[1]
    return math.exp(total + min(0, 1 - nearest / len(text)))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (" \n", ("", 0)),
        ("a b c", ("a", 1)),
        ("then THE dog, the dog. The dog ran", ("the dog", 3)),
        ("a b a b c c c", ("c", 3)),
        ("word , , , , and", (",", 4)),
        ("ab ab abab", ("ab", 2)),
    ],
)
def test_the_phrase_that_stands_most_often_in_a_row(text, found):
    assert in_a_row(text) == found


@pytest.mark.parametrize("vocabulary", [3, 12, 200])
def test_self_bleu_is_the_mean_bleu_against_the_others(vocabulary):
    rng = random.Random(vocabulary)
    texts = [[str(rng.randrange(vocabulary)) for _ in range(rng.randint(4, 30))] for _ in range(9)]
    expected = [_bleu(text, texts[:i] + texts[i + 1 :]) for i, text in enumerate(texts)]
    assert text_metrics.self_bleu(texts) == pytest.approx(sum(expected) / len(expected))
    assert text_metrics.self_bleu(texts[:1] * 3) == pytest.approx(1)
    assert math.isnan(text_metrics.self_bleu(texts[:1]))


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["a b c d e", "f g h i", "j k l m n o"], 0),
        (["a b c d e", "a b x y z w", "p q r s"], 0.06665197959459833),
        (["a b", "a c d", "a b c d e f"], 0.1932704490350171),
        (["a", "a", "b c"], 0.11855196066926153),
        (["", "a b c d", "a b c e f"], 0.1918645093353408),
        (["", "a", "a b"], 0.10912093970867147),
        (["", ""], 0),
    ],
)
def test_self_bleu_of_short_and_unlike_texts_is_nltks(texts, expected):
    """Values: NLTK 3.10.4, `sentence_bleu` with `SmoothingFunction().method1`, averaged."""
    assert text_metrics.self_bleu([text.split() for text in texts]) == pytest.approx(expected)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the cat sat on the mat and the dog ran"] * 3, 270)


@pytest.mark.parametrize("block", [1, 7, 50, 1 << 19])
def test_copies_are_found_wherever_blocks_of_the_training_text_end(tokenizer, monkeypatch, block):
    monkeypatch.setattr("gpt2.compare_decoding.text_metrics._BLOCK_TOKENS", block)
    rng = random.Random(0)
    made_up = ["".join(rng.choices("abc\u00e9", k=rng.randint(1, 5))) for _ in range(400)]
    documents = [" ".join(made_up[i : i + 50]) for i in range(0, 400, 50)]
    stream = document_stream(tokenizer, documents)
    copied, across, changed = made_up[60:75], made_up[40:60], [*made_up[100:107], "never"]
    search = CopySearch([copied, across, changed], n=8)
    assert search.read(stream, tokenizer, 10**9) == len(stream)
    assert search.share([copied]) == 1
    # Of 13 runs of 8 words from 40 to 60, those that reach over the document's end at 50 are none.
    assert search.share([across]) == pytest.approx(6 / 13)
    assert search.share([changed]) == 0
    assert math.isnan(search.share([["short"]]))


def test_only_the_part_asked_for_is_searched(tokenizer):
    text = words("the cat sat on the mat and the dog ran home again")
    stream = document_stream(tokenizer, [" ".join(text)])
    search = CopySearch([text], n=8)
    assert search.read(stream, tokenizer, 5) == 5
    assert search.share([text]) == 0
