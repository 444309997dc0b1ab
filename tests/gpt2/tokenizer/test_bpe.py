"""gpt2.tokenizer.bpe and pretokens: merges, ties, word counts."""

import io
import itertools
import re
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
import pytest
import tiktoken
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt2.tokenizer import Tokenizer, pretokens
from gpt2.tokenizer.bpe import BYTE_ORDER, train_bpe, train_bpe_and_encode
from gpt2.tokenizer.pretokens import SPLIT_PATTERN, count_pretokens, cut, split

# As published with GPT-2.
PUBLISHED_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Letters of several lengths in UTF-8, contractions, digits, and much white space of several kinds.
texts = st.text(st.sampled_from("ab'stlé日😀1 \t\n\r\u00a0\u2028!."), max_size=40) | st.text()


def merge_naively(words: Counter[str], n_merges: int) -> list[tuple[bytes, bytes]]:
    """Sennrich et al. 2016, algorithm 1: all pairs are counted anew before each merge."""
    order = {bytes([byte]): rank for rank, byte in enumerate(BYTE_ORDER)}
    split = {word: [bytes([byte]) for byte in word.encode()] for word in words}
    merges = []
    while len(merges) < n_merges:
        counts: Counter[tuple[bytes, bytes]] = Counter()
        for word, symbols in split.items():
            for pair in itertools.pairwise(symbols):
                counts[pair] += words[word]
        if not counts:
            break
        pair = min(counts, key=lambda p: (-counts[p], order[p[0]], order[p[1]]))
        merges.append(pair)
        order[pair[0] + pair[1]] = len(order)
        for symbols in split.values():
            for i in range(len(symbols) - 1):
                if tuple(symbols[i : i + 2]) == pair:
                    symbols[i : i + 2] = [pair[0] + pair[1]]
    return merges


@given(st.lists(st.text(st.sampled_from("aab é!")), max_size=8), st.integers(0, 40))
@example(["aaaa aaa aa aaaaa"], 5)  # overlapping pairs
@example(["abab ababab"], 4)  # a pair that is born and used up within one merge
def test_merges_are_those_of_recounting_all_pairs(documents, n_merges):
    if not any(documents):
        documents = ["a"]
    words = Counter(word for text in documents for word in split(text))
    assert train_bpe(documents, 257 + n_merges) == merge_naively(words, n_merges)
    tokenizer, encoded = Tokenizer.train_and_encode(documents, 257 + n_merges)
    assert [ids.tolist() for ids in encoded] == list(map(tokenizer.encode, documents))


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(pretokens, "_BATCH_CHARS", 1 << 12)
    monkeypatch.setattr(pretokens, "_ALONE_CHARS", 1 << 14)
    monkeypatch.setattr(pretokens, "_SLOT_BITS", 6)  # most are taken


@pytest.mark.usefixtures("small_pieces")
def test_merges_do_not_depend_on_the_number_of_processes(documents):
    whole = Counter(word for text in documents for word in split(text))
    for processes in (1, 3):
        assert count_pretokens(iter(documents), processes=processes)[0] == whole
    backwards = documents[::-1]
    merges, encoded = train_bpe_and_encode(documents, 300, processes=2)
    assert merges == train_bpe(backwards, 300, processes=1)
    tokenizer = Tokenizer.train(backwards, 300)
    ids = np.concatenate([tokenizer.encode(text) for text in documents])
    assert np.array_equal(np.concatenate(list(encoded)) + 1, ids)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("processes", [1, 2])
def test_the_text_is_never_whole_in_memory(processes):
    def stream() -> Iterator[str]:
        for k in range(500):
            yield f"line {k % 100} " * 200  # 1.9 kB

    tracemalloc.start()
    count_pretokens(stream(), processes=processes)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    pipes = 2 * processes * io.DEFAULT_BUFFER_SIZE
    assert peak < 300_000 + pipes, "of 950 kB of text"


@pytest.mark.usefixtures("small_pieces")
def test_an_error_in_the_source_ends_the_workers(monkeypatch):
    started = []

    class Recorded(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Recorded)

    def stream() -> Iterator[str]:
        for _ in range(40):
            yield "some text " * 100
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        count_pretokens(stream(), processes=2)
    assert len(started) == 2
    assert all(process.poll() is not None for process in started)


@pytest.mark.usefixtures("small_pieces")
def test_a_worker_that_dies_is_reported(monkeypatch, tmp_path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 9\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(RuntimeError, match=r"exit code 9.*processes=1"):
        count_pretokens(["some text " * 10_000], processes=2)


def test_a_worker_imports_no_torch_and_nothing_of_ours():
    code = (
        "import runpy, sys; runpy.run_path(sys.argv[1]);"
        "assert not {'gpt2', 'torch', 'tqdm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, pretokens.__file__], check=True)


CHARACTERS = [chr(c) for c in range(1, sys.maxunicode + 1) if not 0xD800 <= c < 0xE000]
# A letter, a digit, white space and punctuation before and after a character, and contractions.
CONTEXTS = "a{0}b1{0}2 {0}'{0}s 's{0}\n{0}'S{0}\n\n"
PAIRS = itertools.product("sdmtlvreSDMTLVREx", repeat=2)
CONTRACTIONS = "".join(f"x'{first}{second}x" for first, second in PAIRS)


def _tiktoken(pattern: str, tokens: Iterable[bytes] = ()) -> tiktoken.Encoding:
    ranks = {bytes([byte]): byte for byte in range(256)}
    for token in tokens:
        ranks.setdefault(token, len(ranks))
    return tiktoken.Encoding("test", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


@pytest.mark.parametrize(("name", "published"), [("L", r"\p{L}"), ("N", r"\p{N}"), ("S", r"\s")])
def test_letters_numbers_and_white_space_are_those_of_tiktoken_and_tokenizers(name, published):
    text = "\0" + "".join(CHARACTERS)
    ours = "".join(re.findall(f"[{pretokens._ranges(name)}]+", text))
    theirs = _tiktoken(f"{published}+")  # what the pattern does not match is left out
    assert theirs.decode(theirs.encode_ordinary(text)) == ours
    removed = tokenizers.pre_tokenizers.Split(tokenizers.Regex(f"{published}+"), "removed")
    parts = (text[start : start + 4096] for start in range(0, len(text), 4096))
    others = {
        char for part in parts for piece, _ in removed.pre_tokenize_str(part) for char in piece
    }
    assert others == set(text) - set(ours)


def _split_by_hugging_face(text: str) -> list[str]:
    gpt2 = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return [text[start:end] for _, (start, end) in gpt2.pre_tokenize_str(text)]


def _telling_tokens() -> Iterator[bytes]:
    """Tokens with which other pre-tokens become other ids, for texts made of CONTEXTS."""
    for byte, near in itertools.product(range(0x80, 0x100), sorted(set(CONTEXTS.encode()))):
        yield from (bytes([byte, near]), bytes([near, byte]))
    texts = [CONTEXTS.format(chr(c)) for c in range(0x80)]
    texts += [CONTRACTIONS[start : start + 10] for start in range(len(CONTRACTIONS))]
    for text in texts:
        for start, end in itertools.combinations(range(len(text) + 1), 2):
            yield text[start:end].encode()


def _at_borders() -> list[str]:
    ends = [
        int(end, 16) for name in "LNS" for end in re.findall(r"\w+", str(pretokens._TABLES[name]))
    ]
    near = {chr(max(1, end + step)) for end in ends for step in (-1, 0, 1)}
    return sorted({*near, *map(chr, range(1, 0x100))} & set(CHARACTERS))


@pytest.mark.parametrize(
    "characters", [_at_borders(), pytest.param(CHARACTERS, marks=pytest.mark.slow)], ids=len
)
def test_training_and_encoding_split_as_tiktokens_gpt2_and_tokenizers(characters):
    """For all characters, and for those beside the borders of the tables."""
    tokens = list(_telling_tokens())
    ours, published, between_nuls = (
        _tiktoken(pattern, tokens) for pattern in (SPLIT_PATTERN, PUBLISHED_PATTERN, r"[^\x00]+")
    )
    for start in range(0, len(characters), 1 << 14):
        contexts = map(CONTEXTS.format, characters[start : start + (1 << 14)])
        text = "".join(contexts) + CONTRACTIONS
        ids = published.encode_to_numpy(text)
        assert np.array_equal(ours.encode_to_numpy(text), ids)
        pieces = split(text)
        assert np.array_equal(between_nuls.encode_to_numpy("\0".join(pieces)), ids)
        assert _split_by_hugging_face(text) == pieces


@given(texts)
@example("a \n\n b \n ")
def test_any_text_is_split_as_by_tokenizers(text):
    assert split(text) == _split_by_hugging_face(text)


@given(st.lists(st.lists(texts, min_size=1, max_size=6), max_size=3))
@example([["a'", "s\0", "", "'ll", " ", "x'v"], ["e \0\0", "\u0161\u0061 \u0161"]])
def test_texts_in_a_batch_are_split_each_by_itself(batches):
    numbers = pretokens._Numbers()
    for batch in batches:
        found, ends = numbers.of(batch)
        words = list(numbers)
        pieces = [[words[n] for n in found[a:b]] for a, b in itertools.pairwise([0, *ends])]
        assert pieces == list(map(_split_by_hugging_face, batch))


@settings(max_examples=200)
@given(texts, st.integers(1, 5))
def test_cutting_a_text_changes_no_pretoken(text, size):
    parts = list(cut(text, size))
    assert "".join(parts) == text
    pieces = [word for part in parts for word in split(part)]
    assert pieces == split(text)


def test_long_text_is_cut_near_the_size_asked_for(documents):
    lengths = [len(part) for part in cut("".join(documents), 1000)]
    assert max(lengths) < 1200
    assert min(lengths[:-1]) >= 1000


@pytest.mark.parametrize(
    ("documents", "vocab_size", "message"),
    [
        (["text"], 256, r"vocab_size=256 is too small.*need 257"),
        (["", ""], 300, "no text"),
        ("text", 300, "iterable of documents"),
        (["fine", "ab\ud800"], 300, r"lone surrogate.*'\\ud800'"),
    ],
)
def test_what_is_no_corpus_or_size_is_refused(documents, vocab_size, message):
    with pytest.raises(ValueError, match=message):
        train_bpe(documents, vocab_size)


def test_learning_ends_when_the_text_has_no_pairs_left():
    assert train_bpe(["abcd"], 300) == [(b"a", b"b"), (b"c", b"d"), (b"ab", b"cd")]
    merges = train_bpe(["<|endoftext|>"] * 3, 257 + 10)  # in a text it is ordinary text
    assert b"endoftext" in [left + right for left, right in merges]
