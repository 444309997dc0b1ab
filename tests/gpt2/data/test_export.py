"""gpt2.data.export: other trainers find in their files what the text says, by their own layouts."""

import struct
from pathlib import Path

import numpy as np
import pytest

from gpt2.data import export
from gpt2.data.export import Arguments, main
from gpt2.data.prepare import prepare
from gpt2.data.shards import TokenStream
from gpt2.tokenizer import Tokenizer
from tests.gpt2.data.corpora import stories, write_stories

EOT = 7


def read_nanogpt(folder: Path, split: str) -> tuple[list[list[int]], str]:
    """The documents of a split and the type of the ids; each ends with its end-of-text id."""
    ids = np.memmap(folder / f"{split}.bin", dtype=np.uint16, mode="r")
    return [part.tolist() for part in np.split(ids, np.flatnonzero(ids == EOT) + 1)], "uint16"


def read_llm_c(folder: Path, split: str) -> tuple[list[list[int]], str]:
    """Each begins with its end-of-text id; the files are joined, as their reader does."""
    parts = []
    for path in sorted(folder.glob(f"stories_{split}_*.bin")):
        content = path.read_bytes()
        magic, version, count = struct.unpack("<3i", content[:12])
        dtype = {(20240520, 1): "<u2", (20240801, 7): "<u4"}[magic, version]
        assert len(content) == 1024 + count * np.dtype(dtype).itemsize
        parts.append(np.frombuffer(content, dtype, offset=1024))
    ids = np.concatenate(parts)
    documents = np.split(ids, np.flatnonzero(ids == EOT))
    return [part.tolist() for part in documents[1:]], ids.dtype.name


def read_megatron(folder: Path, split: str) -> tuple[list[list[int]], str]:
    """By the index, as Megatron does: length and place of each sequence, sequences of each
    document."""
    with open(folder / f"{split}_text_document.idx", "rb") as file:
        assert file.read(9) == b"MMIDIDX\x00\x00"
        version, code, sequences, bounds = struct.unpack("<QBQQ", file.read(25))
        assert version == 1
        lengths = np.frombuffer(file.read(4 * sequences), "<i4")
        places = np.frombuffer(file.read(8 * sequences), "<i8")
        documents = np.frombuffer(file.read(8 * bounds), "<i8")
        assert not file.read()
    assert documents.tolist() == list(range(sequences + 1))
    dtype = np.dtype({4: "<i4", 8: "<u2"}[code])
    content = (folder / f"{split}_text_document.bin").read_bytes()
    assert len(content) == lengths.sum() * dtype.itemsize
    parts = zip(lengths, places, strict=True)
    return [np.frombuffer(content, dtype, n, at).tolist() for n, at in parts], dtype.name


READERS = {"nanogpt": read_nanogpt, "llm.c": read_llm_c, "megatron": read_megatron}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and files of a few hundred tokens."""
    monkeypatch.setattr(export, "_BLOCK", 170)
    monkeypatch.setattr(export, "_LLM_C_TOKENS", 400)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("form", READERS)
def test_every_document_is_found_by_the_layout_and_comes_back(
    form, tokenizer_file, tmp_path, capsys, monkeypatch
):
    write_stories(tmp_path / "stories.txt", 60)
    cache, out = tmp_path / "cache", tmp_path / "out"
    options = {"tokenizer": str(tokenizer_file), "cache_dir": cache}
    prepared = prepare(str(tmp_path / "stories.txt"), **options, progress=False)
    main(Arguments(str(tmp_path / "stories.txt"), form, out, **options))
    assert f"written for {form}, with tokenizer.json: {out}" in capsys.readouterr().out
    tokenizer = Tokenizer.load(out / "tokenizer.json")
    monkeypatch.setitem(globals(), "EOT", tokenizer.eot_id)
    texts = []
    for ours, theirs in (("train", "train"), ("valid", "val"), ("test", "test")):
        found, dtype = READERS[form](out, theirs)
        assert dtype == "uint16"
        assert len(found) >= prepared.splits[ours].n_documents
        for ids in filter(None, found):
            assert ids[0 if form == "llm.c" else -1] == tokenizer.eot_id
            assert ids.count(tokenizer.eot_id) == 1
            texts.append(tokenizer.decode(id for id in ids if id != tokenizer.eot_id))
    assert sorted(texts) == sorted(text.strip("\n") for text in stories(60))
    if form == "llm.c":
        assert len(list(out.glob("*_train_*.bin"))) > 5
    again = prepare(
        str(out),
        cache_dir=cache,
        progress=False,
        token_type="uint16" if form == "nanogpt" else None,
    )
    for split, stream in prepared.splits.items():
        other = again.splits[split]
        assert np.array_equal(other.read(0, len(other)), stream.read(0, len(stream)))
        assert (other.n_documents, other.n_bytes) == (stream.n_documents, stream.n_bytes)


def stream_of(ids: list[int], vocab_size: int) -> TokenStream:
    parts = [(Path("made"), np.array(ids))]
    return TokenStream(
        parts, vocab_size=vocab_size, tokenizer_hash="", n_bytes=1, n_documents=1, remedy=""
    )


@pytest.mark.parametrize(
    ("form", "vocab_size", "dtype"),
    [
        ("nanogpt", 65536, "uint16"), ("llm.c", 65536, "uint16"), ("llm.c", 65537, "uint32"),
        ("megatron", 65499, "uint16"), ("megatron", 65500, "int32"), ("megatron", 1 << 20, "int32"),
    ],
)  # fmt: skip
def test_the_type_of_the_ids_is_what_their_reader_expects(form, vocab_size, dtype, tmp_path):
    """A last document that is cut off has no end-of-text id after it."""
    ids = [vocab_size - 1, 5, EOT, 6, 0]
    write = export.WRITERS[form]
    write(tmp_path, "stories", "val", stream_of(ids, vocab_size), EOT)
    found, name = READERS[form](tmp_path, "val")
    assert name == dtype
    before = [[EOT, vocab_size - 1, 5], [EOT, 6, 0]]
    assert found == (before if form == "llm.c" else [ids[:3], ids[3:]])


def test_what_nanogpt_cannot_read_is_refused_and_the_others_take_it(tmp_path):
    stream = stream_of([1, 70_000, EOT], 70_001)
    with pytest.raises(
        ValueError, match=r"has 70,001 tokens: choose --format llm\.c or --format me"
    ):
        export.write_nanogpt(tmp_path, "stories", "val", stream, EOT)
    assert not list(tmp_path.iterdir())
    for form in ("llm.c", "megatron"):
        export.WRITERS[form](tmp_path, "stories", "val", stream, EOT)
        assert 70_000 in READERS[form](tmp_path, "val")[0][0]


def test_nothing_is_written_over(tmp_path):
    (tmp_path / "kept").write_text("")
    for out in (tmp_path, tmp_path / "kept"):
        with pytest.raises(ValueError, match=r"--out .* is no empty folder: name a new one"):
            main(Arguments("stories.txt", "llm.c", out))
