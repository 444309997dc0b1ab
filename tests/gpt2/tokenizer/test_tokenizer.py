"""gpt2.tokenizer: ids, files, exact decoding, errors."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import assume, example, given
from hypothesis import strategies as st

import gpt2.tokenizer.tokenizer
from gpt2.tokenizer import Tokenizer
from gpt2.tokenizer.bpe import BYTE_ORDER
from gpt2.tokenizer.pretokens import cut
from gpt2.tokenizer.vocabulary import Vocabulary, _unreachable, to_tokenizer_json
from tests.gpt2.tokenizer.conftest import read_text

texts = st.text(st.sampled_from("abe'stlé日😀1 \t\n<|endoftext|>"), max_size=40) | st.text()


@pytest.fixture(scope="module")
def tokenizer(documents):
    return Tokenizer.train(documents, vocab_size=1024)


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "tokenizer.json"
    tokenizer.save(path)
    return path


@pytest.fixture(scope="module")
def hugging_face(saved):
    """Our tokenizer as Hugging Face opens it."""
    return tokenizers.Tokenizer.from_file(str(saved))


@pytest.fixture(scope="module")
def gpt2_tokenizer(real_data):
    return Tokenizer.load(real_data / "gpt2-bpe")


# Ids


@pytest.mark.parametrize(
    ("file", "size"),
    [
        (None, 4096),
        ("wikitext-2/wiki.test.raw.gz", 8_000),
        ("tinyshakespeare/input.txt", 50_000),  # all but down to the last pair
    ],
)
def test_training_gives_hugging_faces_ids_and_merges(request, documents, tmp_path, file, size):
    if file:
        documents = [read_text(request.getfixturevalue("real_data") / file)]
    trained = Tokenizer.train(documents, size)
    trained.save(tmp_path)
    ours = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    theirs = tokenizers.ByteLevelBPETokenizer()
    parts = [part for text in documents for part in cut(text, 1 << 16)]
    theirs.train_from_iterator(parts, size, 0, False, ["<|endoftext|>"])
    expected = json.loads(theirs.to_str())["model"]
    assert ours["vocab"] == expected["vocab"]
    assert ours["merges"] == expected["merges"]
    assert (trained.vocab_size, trained.eot_id) == (len(expected["vocab"]), 0)


@given(texts)
@example("")
@example(" \u00a0\u2028\x1c\x85 \n\n  x\r\n")
def test_ids_equal_hugging_faces_on_any_text(tokenizer, hugging_face, text):
    """The saved file means the same to Hugging Face."""
    assume("<|endoftext|>" not in text)
    ids = tokenizer.encode(text)
    assert ids == hugging_face.encode(text).ids
    assert hugging_face.decode(ids) == text


def test_ids_equal_hugging_faces_on_real_text(real_data, tmp_path):
    text = read_text(real_data / "tinystories/tinystories-valid.txt.gz")
    stories = text.split("<|endoftext|>\n")
    ours = Tokenizer.train(stories, vocab_size=4096)
    ours.save(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for ids, encoding in zip(
        ours.encode_documents(stories), theirs.encode_batch(stories), strict=True
    ):
        assert ids.tolist() == encoding.ids


def test_end_of_text_in_a_document_is_plain_text_unless_allowed(tokenizer):
    plain = tokenizer.encode("a<|endoftext|>b")
    assert tokenizer.eot_id not in plain
    allowed = tokenizer.encode("a<|endoftext|>b", allow_special=True)
    assert allowed == [*tokenizer.encode("a"), tokenizer.eot_id, *tokenizer.encode("b")]
    assert tokenizer.decode(plain) == tokenizer.decode(allowed) == "a<|endoftext|>b"


def test_documents_have_the_ids_of_single_texts(tokenizer, documents, monkeypatch):
    expected = [tokenizer.encode(text) for text in ["", *documents]]
    monkeypatch.setattr(gpt2.tokenizer.tokenizer, "_PART_CHARS", 100)  # cut even these
    got = tokenizer.encode_documents(["", *documents])
    assert {ids.dtype for ids in got} == {np.dtype(np.uint32)}
    assert [ids.tolist() for ids in got] == expected
    assert tokenizer.encode_documents([]) == []


def test_long_runs_are_encoded_and_white_space_apart_from_a_word(tokenizer):
    for text in (" " * 200_000 + "a", "\n" * 1_500_000, "a" * 200_000):
        assert tokenizer.decode_bytes(tokenizer.encode(text)) == text.encode()
    assert list(cut(" " * 200_000 + "a", 1 << 16)) == [" " * 199_999, " a"]


def test_a_lone_surrogate_is_refused(tokenizer):
    for encode in (
        tokenizer.encode,
        lambda text: tokenizer.encode(text, allow_special=True),
        lambda text: tokenizer.encode_documents([text]),
    ):
        with pytest.raises(ValueError, match=r"lone surrogate, '\\ud83d' at character 2"):
            encode("ab\ud83d")


# Back to text


@given(texts)
def test_the_very_bytes_come_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(np.array(ids, dtype=np.uint16)) == text


@given(st.lists(st.integers(0, 1023)))
def test_a_stream_gives_the_text_of_decode(tokenizer, ids):
    assert "".join(tokenizer.decode_stream(iter(ids))) == tokenizer.decode(ids)


def test_a_stream_gives_whole_characters_as_soon_as_it_can(tokenizer):
    ids = [1 + BYTE_ORDER.index(byte) for byte in "é😀".encode()]  # a token per byte
    stream = tokenizer.decode_stream(ids)
    assert list(stream) == ["é", "😀"]
    assert list(tokenizer.decode_stream(ids[:-1])) == ["é", "\ufffd"]


@pytest.mark.parametrize("bad", [1024, -1, 2**70])
def test_an_unknown_id_is_named(tokenizer, bad):
    with pytest.raises(ValueError, match=rf"id {bad} \(number 1 of 2\).*0 to 1023"):
        tokenizer.decode([5, bad])


# Files


def test_a_saved_tokenizer_is_the_same_tokenizer(tokenizer, documents, saved):
    for path in (saved, saved.parent):
        loaded = Tokenizer.load(path)
        assert (loaded.hash, loaded.vocab_size) == (tokenizer.hash, tokenizer.vocab_size)
        assert loaded.encode(documents[0]) == tokenizer.encode(documents[0])


def test_the_hash_tells_tokenizers_apart(tokenizer, documents):
    for size in (1024, 1023):
        assert (Tokenizer.train(documents, size).hash == tokenizer.hash) == (size == 1024)


def _set(*keys: Any, to: Any) -> Callable[[dict[str, Any]], Any]:
    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = to

    return change


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
TRIMMED = BYTES | {"trim_offsets": False}
OPENAIS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
TIKTOKENS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
SPLIT = {"type": "Split", "pattern": {"Regex": OPENAIS}, "behavior": "Isolated", "invert": False}


def sequence(*pretokenizers: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(pretokenizers)}


ADDING = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ],
    "pair": [],
    "special_tokens": {},
}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_set("normalizer", to={"type": "NFC"}), "it has a normalizer"),
        (_set("pre_tokenizer", to={"type": "Whitespace"}), "pre_tokenizer is not that of GPT-2"),
        (_set("pre_tokenizer", to=None), "pre_tokenizer is not that of GPT-2"),
        (_set("pre_tokenizer", "add_prefix_space", to=True), "pre_tokenizer is not that of GPT-2"),
        (_set("pre_tokenizer", "use_regex", to=False), "pre_tokenizer is not that of GPT-2"),
        (_set("post_processor", to=ADDING), "adds tokens to every text"),
        (_set("post_processor", to={"type": "Sequence", "processors": [ADDING]}), "adds tokens"),
        (_set("model", "type", to="Unigram"), "its model is 'Unigram'"),
        (_set("model", "dropout", to=0.1), r"dropout=0\.1"),
        (_set("added_tokens", to=[]), "not among its special tokens"),
        (lambda t: t["model"]["vocab"].pop("<|endoftext|>"), "its library gives other ids"),
        (_set("added_tokens", 0, "id", to=1024), "its library gives other ids to its added tokens"),
        (_set("added_tokens", 0, "lstrip", to=True), "added token '<|endoftext|>' has lstrip"),
        (_set("added_tokens", 0, "single_word", to=True), "has single_word"),
        (
            lambda t: t["added_tokens"].append(
                t["added_tokens"][0] | {"content": "\u00e9", "id": t["model"]["vocab"]["\u00e9"]}
            ),
            "'\u00e9' is also that of other bytes",
        ),
        (_set("pre_tokenizer", to=sequence(SPLIT)), "pre_tokenizer is not that of GPT-2"),
        (
            _set(
                "pre_tokenizer",
                to=sequence(SPLIT | {"invert": True, "behavior": "Contiguous"}, BYTES),
            ),
            "pre_tokenizer is not that of GPT-2",
        ),
        (
            _set("pre_tokenizer", to=sequence(SPLIT | {"pattern": {"Regex": r"\w+"}}, BYTES)),
            "pre_tokenizer is not that of GPT-2",
        ),
        (_set("model", "vocab", "Ġt", to=5), "its ids are not 0 to 1023"),
        (lambda t: t["model"]["vocab"].pop("!"), "its ids are not 0 to 1022"),
        (
            lambda t: t["model"]["vocab"].update({"!!!!!": t["model"]["vocab"].pop("!")}),
            "has no token for byte 33",
        ),
        (lambda t: t["model"]["merges"].reverse(), "in the order of ids"),
        (lambda t: t["model"]["merges"].pop(), "not one for each longer token"),
        (_set("model", "merges", 0, to=["€", "a"]), "none of byte-level BPE"),
        (_set("model", "merges", 0, to=["Q", "Q"]), "not in the vocabulary"),
        (_set("model", to="x"), "it is not a tokenizer.json"),
        (lambda t: t.pop("model"), "it is not a tokenizer.json"),
    ],
)
def test_a_foreign_tokenizer_json_is_refused_with_the_reason(saved, tmp_path, change, reason):
    path = tmp_path / "tokenizer.json"
    content = json.loads(saved.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=reason.replace("|", r"\|")) as error:
        Tokenizer.load(path)
    assert str(path) in str(error.value)
    assert "Tokenizer.train" in str(error.value)


ODD_TEXTS = [
    "it's  2 \u0663\u00b2 na\u00efve\n\n  \u65e5\u672c\t ",
    "\r\n \u2028\x0c 'LL 've -- \U0001f98a e\u0301",
]


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("post_processor", None),
        ("post_processor", ADDING | {"single": ADDING["single"][1:], "pair": []}),
        ("post_processor", {"type": "Sequence", "processors": [TRIMMED, TRIMMED]}),
        ("normalizer", {"type": "Sequence", "normalizers": []}),
        ("truncation", {"direction": "Right", "max_length": 9999, "strategy": "LongestFirst",
            "stride": 0}),
        ("padding", {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"}),
        ("decoder", None),
        ("pre_tokenizer", sequence(BYTES | {"use_regex": True})),
        ("pre_tokenizer", sequence(SPLIT, BYTES)),
        ("pre_tokenizer", sequence(SPLIT | {"pattern": {"Regex": TIKTOKENS}}, BYTES)),
        ("pre_tokenizer", sequence(SPLIT | {"invert": True, "behavior": "Removed"}, BYTES)),
        ("pre_tokenizer", sequence(SPLIT, BYTES | {"use_regex": True})),
        ("model.unk_token", "<|endoftext|>"),
        ("model.ignore_merges", True),
        ("model.byte_fallback", True),
    ],
    ids=str,
)  # fmt: skip
def test_what_changes_no_id_is_no_objection(tokenizer, documents, saved, tmp_path, part, value):
    """The parts of a tokenizer.json as transformers, tokenizers and people write them."""
    content = json.loads(saved.read_text(encoding="utf-8"))
    _set(*part.split("."), to=value)(content)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    theirs = tokenizers.Tokenizer.from_file(str(path))
    loaded = Tokenizer.load(tmp_path)
    for text in [*ODD_TEXTS, documents[0][:5000]]:
        assert loaded.encode(text) == theirs.encode(text).ids
    assert loaded.hash == tokenizer.hash


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize(
    "behavior", ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"]
)
def test_a_split_is_taken_exactly_when_it_gives_gpt2s_ids(
    tokenizer, saved, tmp_path, behavior, invert
):
    content = json.loads(saved.read_text(encoding="utf-8"))
    content["pre_tokenizer"] = sequence(SPLIT | {"behavior": behavior, "invert": invert}, BYTES)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    theirs = tokenizers.Tokenizer.from_file(str(path))
    texts = [*ODD_TEXTS, "the end", "  ", "a"]
    if all(theirs.encode(text).ids == tokenizer.encode(text) for text in texts):
        assert Tokenizer.load(path).hash == tokenizer.hash
    else:
        with pytest.raises(ValueError, match="pre_tokenizer is not that of GPT-2"):
            Tokenizer.load(path)


def test_an_added_token_may_be_one_of_the_vocabulary(tokenizer, saved, tmp_path):
    """As `add_tokens` of transformers leaves it: then it is looked for inside of words as well."""
    theirs = tokenizers.Tokenizer.from_file(str(saved))
    theirs.add_tokens(["the", "#", "he"])
    theirs.save(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.load(tmp_path)
    text = "the other #the mother, bathe"
    assert loaded.vocab_size == theirs.get_vocab_size() == tokenizer.vocab_size
    assert loaded.encode(text) == theirs.encode(text).ids != tokenizer.encode(text)
    assert loaded.decode(loaded.encode(text)) == text
    loaded.save(tmp_path / "again.json")
    assert Tokenizer.load(tmp_path / "again.json").hash == loaded.hash


OWN = {"<|user|>": True, "<|user|>:": True, "[end of turn]": False}
"""Special tokens of a checkpoint; two begin alike, one is not marked as special."""


@pytest.mark.parametrize("form", ["tokenizer.json", "vocab.json and added_tokens.json"])
def test_special_tokens_of_a_checkpoint_are_tokens_in_text(saved, tmp_path, form):
    content = json.loads(saved.read_text(encoding="utf-8"))
    end = content["added_tokens"][0]
    content["added_tokens"] += [
        end | {"id": 1024 + n, "content": name, "special": special, "normalized": not special}
        for n, (name, special) in enumerate(OWN.items())
    ]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    theirs = tokenizers.Tokenizer.from_file(str(path))
    if form != "tokenizer.json":
        path.unlink()
        model = content["model"]
        lines = [" ".join(pair) for pair in model["merges"]]
        (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
        (tmp_path / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
        added = {name: 1024 + n for n, name in enumerate(OWN)}
        (tmp_path / "added_tokens.json").write_text(json.dumps(added), encoding="utf-8")
    loaded = Tokenizer.load(tmp_path)
    texts = [
        *("<|user|>hello", "hello <|user|>: who?[end of turn]", "<|user|><|user|>", "<|user"),
        *("a  <|user|>  b\n\n[end of turn]\n", "[end of turn", "", " "), "x " * 70_000 + "<|user|>",
    ]  # fmt: skip
    for text, own in zip(texts, loaded.encode_documents(texts), strict=True):
        assert loaded.encode(text) == own.tolist() == theirs.encode(text).ids
        assert loaded.decode(own) == text
    assert loaded.encode_prompt("<|endoftext|>a<|user|>") == [0, *loaded.encode("a"), 1024]
    assert loaded.encode_prompt("") == loaded.encode_prompt("<|endoftext|>") == [0]
    assert 0 not in loaded.encode("<|endoftext|>")
    assert Tokenizer.load(tmp_path).hash == loaded.hash
    loaded.save(tmp_path / "again.json")
    assert Tokenizer.load(tmp_path / "again.json").hash == loaded.hash


def test_a_damaged_file_is_refused_with_the_reason(tmp_path):
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(ValueError, match=r"cannot use this tokenizer: .* a JSON list.*train a"):
        Tokenizer.load(tmp_path)


def test_a_missing_tokenizer_is_said_with_the_remedy(tmp_path):
    (tmp_path / "encoder.json").write_text("{}")  # its other half is missing
    for path in (tmp_path, tmp_path / "encoder.json", tmp_path / "none.json"):
        with pytest.raises(ValueError, match=r"no tokenizer at .*give a tokenizer\.json"):
            Tokenizer.load(path)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=12), st.booleans())
@example([(0, 1), (1, 1), (0, 3)], False)  # a+b, b+b, a+bb: "abb" becomes "ab" "b"
@example([(0, 0), (1, 0), (3, 2)], False)  # a+a, b+a, ba+aa: in "baaa" the left "aa" goes first
@example([(0, 1), (2, 0)], True)  # ab+a, a+b: a part that comes too late
def test_tokens_that_merges_do_not_reach_are_found(choices, backwards):
    tokens = ["a", "b"]
    merges = []
    for i, j in choices:
        left, right = tokens[i % len(tokens)], tokens[j % len(tokens)]
        if left + right not in tokens:
            tokens.append(left + right)
            merges.append((left, right))
    if backwards:
        merges.reverse()

    def apply(text: str) -> list[str]:
        symbols = list(text)
        for pair in merges:
            for i in range(len(symbols) - 1):
                if tuple(symbols[i : i + 2]) == pair:
                    symbols[i : i + 2] = ["".join(pair)]
        return symbols

    reached = all(apply(left + right) == [left + right] for left, right in merges)
    found = _unreachable([(left.encode(), right.encode()) for left, right in merges])
    assert (found is None) == reached


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=12), st.text("ab"))
def test_a_vocabulary_that_is_accepted_has_hugging_faces_ids(choices, text):
    tokens = [b"a", b"b"]
    merges: list[tuple[bytes, bytes]] = []
    for i, j in choices:
        pair = tokens[i % len(tokens)], tokens[j % len(tokens)]
        if b"".join(pair) not in tokens and _unreachable([*merges, pair]) is None:
            tokens.append(b"".join(pair))
            merges.append(pair)
    alphabet = [bytes([byte]) for byte in range(256)]
    ids = {token: id for id, token in enumerate([*alphabet, *tokens[2:]])}
    vocabulary = Vocabulary(ids, merges, {"<|endoftext|>": len(ids)})
    theirs = tokenizers.Tokenizer.from_str(to_tokenizer_json(vocabulary))
    assert Tokenizer(vocabulary).encode(text) == theirs.encode(text).ids


def test_gpt2s_pair_and_the_older_style_of_tokenizer_json_are_read(tokenizer, saved, tmp_path):
    """As on the hub: merges as one string each, no type of model, a normalized special token."""
    content = json.loads(saved.read_text(encoding="utf-8"))
    vocab, lines = content["model"]["vocab"], [" ".join(p) for p in content["model"]["merges"]]
    end = {"id": 0, "special": True, "content": "<|endoftext|>", "single_word": False}
    content |= {
        "added_tokens": [{**end, "lstrip": False, "rstrip": False, "normalized": True}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
        "model": {"continuing_subword_prefix": "", "vocab": vocab, "merges": lines},
    }
    (tmp_path / "old.json").write_text(json.dumps(content), encoding="utf-8")
    assert Tokenizer.load(tmp_path / "old.json").hash == tokenizer.hash
    for names in (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")):
        (tmp_path / names[0]).write_text(json.dumps(vocab), encoding="utf-8")
        text = "\n".join(["#version: 0.2", *lines, ""])
        (tmp_path / names[1]).write_text(text, encoding="utf-8")
        for name in names:
            assert Tokenizer.load(tmp_path / name).hash == tokenizer.hash
    windows = "\ufeff" + text.replace("\n", "\r\n")
    (tmp_path / "merges.txt").write_bytes(windows.encode())
    (tmp_path / "vocab.json").write_bytes(("\ufeff" + json.dumps(vocab)).encode())
    assert Tokenizer.load(tmp_path / "vocab.json").hash == tokenizer.hash


# GPT-2's own vocabulary


def test_gpt2_cases(real_data, gpt2_tokenizer):
    lines = (real_data / "gpt2-bpe/token-cases.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 45
    for case in map(json.loads, lines):
        ids = gpt2_tokenizer.encode(case["text"], allow_special=case["special"])
        assert ids == case["ids"], case["name"]
        assert gpt2_tokenizer.decode_bytes(ids) == case["text"].encode()
    assert (gpt2_tokenizer.vocab_size, gpt2_tokenizer.eot_id) == (50257, 50256)


@pytest.mark.parametrize(
    ("file", "count", "sha256"),  # its first 16 digits
    [
        ("wikitext-2/wiki.valid.tokens.gz", 258_659, "17bc83b54d943c68"),
        ("wikitext-2/wiki.test.raw.gz", 286_221, "7fead09117d65b36"),
        ("tinystories/tinystories-train.txt.gz", 1_055_450, "bb2783347391e687"),
        ("tinyshakespeare/input.txt", 338_025, "25c01b32b32f4189"),
        ("books/books-valid.txt.gz", 310_473, "e9e84de3c193e07e"),
    ],
)
def test_gpt2_ids_of_whole_files(real_data, gpt2_tokenizer, file, count, sha256):
    documents = read_text(real_data / file).split("<|endoftext|>")
    joined = []
    for ids in gpt2_tokenizer.encode_documents(documents):
        joined += [ids, [gpt2_tokenizer.eot_id]]
    ids = np.concatenate(joined[:-1]).astype("<u2")
    assert len(ids) == count
    assert hashlib.sha256(ids.tobytes()).hexdigest()[:16] == sha256
