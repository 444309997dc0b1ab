"""gpt2.data.token_files and token_splits: ids of other programs mean the same in every layout."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt2.data.prepare import Arguments, Prepared, main, prepare
from gpt2.data.shards import ShardError
from gpt2.tokenizer import Tokenizer
from tests.gpt2.data.corpora import stories

Documents = list[list[int]]
Writer = Callable[[Path, str, Documents, int], None]  # into a folder, a split's documents, the EOT


def flat(documents: Documents, eot: int, *, before: bool = False, dtype: str = "<u2") -> np.ndarray:
    """The ids of documents, with the end-of-text id after each or before."""
    rows = [[eot, *ids] if before else [*ids, eot] for ids in documents]
    return np.array([id for row in rows for id in row], dtype=dtype)


def nanogpt(folder: Path, split: str, documents: Documents, eot: int) -> None:
    flat(documents, eot).tofile(folder / f"{split}.bin")


def llm_c(folder: Path, split: str, documents: Documents, eot: int, *, wide: bool = False) -> None:
    """In two files, the cut within a document, as every file but the last is of one length."""
    ids = flat(documents, eot, before=True, dtype="<u4" if wide else "<u2")
    magic, version = (20240801, 7) if wide else (20240520, 1)
    for number, part in enumerate(np.split(ids, [len(ids) // 2 + 1])):
        header = np.zeros(256, dtype="<i4")
        header[:3] = magic, version, len(part)
        path = folder / f"fineweb_{split}_{number:06d}.bin"
        path.write_bytes(header.tobytes() + part.tobytes())


def llm_c_wide(folder: Path, split: str, documents: Documents, eot: int) -> None:
    llm_c(folder, split, documents, eot, wide=True)


def megatron(folder: Path, split: str, documents: Documents, eot: int) -> None:
    lengths = np.array([len(ids) + 1 for ids in documents])
    ends = np.cumsum(lengths)
    index = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 4, len(lengths), len(lengths) + 1)
    index += lengths.astype("<i4").tobytes() + ((ends - lengths) * 4).astype("<i8").tobytes()
    index += np.arange(len(lengths) + 1, dtype="<i8").tobytes()
    (folder / f"{split}_text_document.idx").write_bytes(index)
    flat(documents, eot, dtype="<i4").tofile(folder / f"{split}_text_document.bin")


def datatrove(folder: Path, split: str, documents: Documents, eot: int) -> None:
    ids = flat(documents, eot)
    path = folder / f"{split}_00000_unshuffled.ds"
    ids.tofile(path)
    Path(f"{path}.metadata").write_text(f"gpt2|2\n{len(ids)}\n{len(ids) / 1e3:.2f} kT")
    np.cumsum([len(d) + 1 for d in documents]).astype("<u8").tofile(f"{path}.index")


def litdata(folder: Path, split: str, documents: Documents, eot: int) -> None:
    (folder / split).mkdir()
    items = [flat([ids], eot).tobytes() for ids in documents]
    start = 4 * (len(items) + 2)
    offsets = start + np.cumsum([0, *map(len, items)])
    head = np.array([len(items), *offsets], dtype="<u4").tobytes()
    (folder / split / "chunk-0-0.bin").write_bytes(head + b"".join(items))
    chunk = {"chunk_bytes": int(offsets[-1]), "chunk_size": len(items), "filename": "chunk-0-0.bin"}
    config = {"compression": None, "encryption": None, "data_format": ["no_header_numpy:5"]}
    chunk["dim"] = (int(offsets[-1]) - start) // 2
    index = json.dumps({"chunks": [chunk], "config": config})
    (folder / split / "index.json").write_text(index)


def numpy_file(folder: Path, split: str, documents: Documents, eot: int) -> None:
    np.save(folder / f"edufineweb_{split}_000000.npy", flat(documents, eot, before=True))


def dolma(folder: Path, split: str, documents: Documents, eot: int) -> None:
    """Ids alone by the name of a .npy file, and the place of each document."""
    (folder / split).mkdir()
    flat(documents, eot, dtype="<u4").tofile(folder / split / "part-0-00000.npy")
    (folder / split / "part-0-00000.csv.gz").write_bytes(b"0,5,a,b,1\n")


WRITERS: dict[Writer, str | None] = {
    nanogpt: "uint16", llm_c: None, llm_c_wide: None, megatron: None, datatrove: None,
    litdata: None, numpy_file: None, dolma: "uint32",
}  # fmt: skip
each_layout = pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)


@pytest.fixture
def tokenizer(tokenizer_file: Path) -> Tokenizer:
    return Tokenizer.load(tokenizer_file)


@pytest.fixture
def opened(tokenizer_file: Path, tmp_path: Path) -> Callable[..., Prepared]:
    def prepare_tokens(data: object, **options: Any) -> Prepared:
        given = {"tokenizer": str(tokenizer_file), "cache_dir": tmp_path / "cache"} | options
        return prepare(str(data), progress=False, **given)

    return prepare_tokens


def whole(prepared: Prepared, split: str) -> list[int]:
    stream = prepared.splits[split]
    return stream.read(0, len(stream)).tolist()


@pytest.fixture
def written(tokenizer: Tokenizer, tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder of tokens by a writer; returns it."""

    def write_tokens(write: Writer, train: int = 40, val: int = 7) -> Path:
        folder = tmp_path / "tokens"
        folder.mkdir()
        for split, count in (("train", train), ("val", val)):
            if count:
                documents = [tokenizer.encode(text) for text in stories(count)]
                write(folder, split, documents, tokenizer.eot_id)
        return folder

    return write_tokens


def ours(tokenizer: Tokenizer, count: int) -> list[int]:
    """The ids of stories as our own shards have them."""
    return flat([tokenizer.encode(text) for text in stories(count)], tokenizer.eot_id).tolist()


@each_layout
def test_every_layout_gives_the_ids_and_figures_of_our_own_shards(
    write, tokenizer, opened, written, monkeypatch
):
    folder = written(write)
    first = opened(folder, token_type=WRITERS[write])
    monkeypatch.setattr("gpt2.data.token_splits.count_ids", None)  # a second time none is counted
    for prepared in (first, opened(folder, token_type=WRITERS[write], verify=True)):
        assert list(prepared.splits) == ["train", "valid"]
        for split, count in (("train", 40), ("valid", 7)):
            assert whole(prepared, split) == ours(tokenizer, count)
            stream = prepared.splits[split]
            assert stream.n_documents == count
            assert stream.n_bytes == sum(len(text.encode()) for text in stories(count))
    assert prepared.fingerprint == first.fingerprint
    assert not list(first.folder.glob("*.bin")), "nothing is copied"


@each_layout
def test_without_a_file_for_validation_whole_documents_at_the_end_are_held_out(
    write, tokenizer, opened, written
):
    prepared = opened(written(write, val=0), token_type=WRITERS[write])
    train, valid = whole(prepared, "train"), whole(prepared, "valid")
    assert train + valid == ours(tokenizer, 40)
    assert train[-1] == tokenizer.eot_id
    assert len(train + valid) / 40 < len(valid) <= len(train + valid) / 20


def test_one_document_is_cut_within(opened, tmp_path):
    np.arange(1, 101, dtype="<u2").tofile(tmp_path / "a.bin")
    prepared = opened(tmp_path / "a.bin", token_type="uint16")
    assert whole(prepared, "train") == list(range(1, 96))
    assert whole(prepared, "valid") == list(range(96, 101))


def test_a_split_is_one_file_or_several_and_named_by_an_index_too(opened, written, tokenizer):
    folder = written(megatron)
    expected = ours(tokenizer, 40)
    for name in ("train_text_document.bin", "train_text_document.idx", "train_text_document"):
        prepared = opened(folder / name)
        assert whole(prepared, "train") + whole(prepared, "valid") == expected
    assert list(opened(str(folder / "val*")).splits) == ["valid"]


def test_text_is_preferred_to_ids_and_that_is_said(opened, written, tokenizer):
    folder = written(nanogpt)
    (folder / "input.txt").write_text("\n<|endoftext|>\n".join(stories(60)), encoding="utf-8")
    (folder / "meta.pkl").write_bytes(b"never opened")
    notes = "\n".join(opened(folder).notes)
    assert (
        "left out: meta.pkl (of no kind that is read); train.bin, val.bin (token ids besi" in notes
    )
    with pytest.raises(ValueError, match=r"--token-type uint16 is the type .* text: leave it out"):
        opened(folder, token_type="uint16")
    assert whole(opened(folder / "*.bin", token_type="uint16"), "train") == ours(tokenizer, 40)


def test_ids_without_an_end_of_text_are_taken_and_that_is_said(opened, tmp_path):
    np.arange(1, 201, dtype="<u2").tofile(tmp_path / "train.bin")
    (note,) = (n for n in opened(tmp_path, token_type="uint16").notes if n.startswith("valid: no"))
    assert note == "valid: no id is 0, <|endoftext|>: nothing tells where a document ends"


def test_the_tokenizer_beside_the_ids_is_theirs_and_without_any_it_is_asked_for(
    opened, written, tokenizer_file
):
    folder = written(llm_c)
    with pytest.raises(ValueError, match=r"--tokenizer, gpt2 for GPT-2's .*put that") as caught:
        opened(folder, tokenizer=None)
    shutil.copy(tokenizer_file, str(caught.value).rpartition("there, as ")[2])
    assert "which lies beside the token ids" in "\n".join(opened(folder, tokenizer=None).notes)


def test_our_own_shards_are_read_like_those_of_others(opened, tokenizer, tmp_path):
    (tmp_path / "train.txt").write_text("\n<|endoftext|>\n".join(stories(60)), encoding="utf-8")
    made = opened(tmp_path / "train.txt")
    prepared = opened(made.folder, tokenizer=None)
    assert {s: whole(prepared, s) for s in prepared.splits} == {
        s: whole(made, s) for s in made.splits
    }
    other = tmp_path / "other.json"
    Tokenizer.train(stories(9), 300).save(other)
    with pytest.raises(
        ValueError, match=r"was made with the tokenizer \w{8}, not with \w{8}: give"
    ):
        opened(made.folder, tokenizer=str(other))


def test_what_a_file_does_not_say_is_asked_for_and_a_wrong_answer_found(opened, written, tmp_path):
    folder = written(nanogpt, val=0)
    with pytest.raises(ValueError, match=r"train\.bin has no header .*--token-type uint16 \(as"):
        opened(folder)
    ids = np.fromfile(folder / "train.bin", dtype="<u2")
    (folder / "train.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:5\n")
    with pytest.raises(ValueError, match=r"train\.bin is .* git-lfs's place-holder: fetch it"):
        opened(folder, token_type="uint16")
    for odd, problem in ((1, "bytes, which is no whole number of uint32 ids"), (0, "holds, as ui")):
        ids[: len(ids) // 2 * 2 - odd].tofile(folder / "train.bin")
        with pytest.raises(ValueError, match=rf"train\.bin .*{problem}.* \(--token-type\)"):
            opened(folder, token_type="uint32")
    opened(folder, token_type="uint16")
    shutil.rmtree(folder)
    folder = written(dolma)
    with pytest.raises(ValueError, match=r"every second id is 0.* give --token-type uint32$"):
        opened(folder, token_type="uint16")
    opened(folder, token_type="uint32")
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match=r"its ids are uint16: leave out --token-type uint32$"):
        opened(written(llm_c), token_type="uint32")


def edit(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return damage


def replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    return lambda content: content.replace(old, new)


def number(offset: int, value: int, code: str = "<i") -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        written = struct.pack(code, value)
        return content[:offset] + written + content[offset + len(written) :]

    return change


LLM_C = "fineweb_train_000000.bin"
MEGATRON = "train_text_document"
DATATROVE = "train_00000_unshuffled.ds"
NPY = "edufineweb_train_000000.npy"
CHUNK = "train/chunk-0-0.bin"


@pytest.mark.parametrize(
    ("write", "damage", "message"),
    [
        (
            nanogpt,
            edit("train.bin", lambda c: c[:-1]),
            "no whole number of uint16 ids: .* fetch it",
        ),
        (nanogpt, edit("val.bin", lambda c: b""), "val.bin is empty"),
        (
            nanogpt,
            edit("train.bin", number(6, 320, "<H")),
            "holds, as uint16, the id 320, which is not",
        ),
        (llm_c, edit(LLM_C, lambda c: c[:-2]), r"end at [\d,]+: it is cut short. Fetch it again"),
        (llm_c, edit(LLM_C, lambda c: c + b"ab"), "end at .*: there is more in it than that"),
        (llm_c, edit(LLM_C, lambda c: c[:700]), "said to be in it end at .*: it is cut short"),
        (llm_c, edit(LLM_C, number(8, 1 << 30)), "said to be in it end at .*: it is cut short"),
        (llm_c, edit(LLM_C, number(8, -5)), "magic 20240520 with version 1 and -5 ids"),
        (llm_c, edit(LLM_C, number(4, 2)), "version 2 and .*; read is version 1"),
        (llm_c, edit(LLM_C, number(0, 20240522)), "multiple-choice questions of llm.c"),
        (llm_c, edit(LLM_C, number(0, 20240521)), "has no header that says of what type"),
        (llm_c, edit(LLM_C, number(0, 20240801)), "magic 20240801 with version 1"),
        (llm_c, edit(LLM_C, lambda c: number(8, 0)(c)[:1024]), "holds no ids: leave it out"),
        (llm_c_wide, edit(LLM_C, number(1028, -1)), "holds, as uint32, the id 4294967295, wh"),
        (megatron, edit(f"{MEGATRON}.bin", lambda c: c[:-4]), "end at .*: it is cut short"),
        (megatron, edit(f"{MEGATRON}.bin", number(8, -3)), "holds, as int32, the id -3, which"),
        (megatron, edit(f"{MEGATRON}.idx", lambda c: b"x" + c), "does not begin as an index"),
        (megatron, edit(f"{MEGATRON}.idx", lambda c: c[:-8]), "bytes, and its counts need"),
        (megatron, edit(f"{MEGATRON}.idx", number(9, 2)), "version 2 and type 4; read are"),
        (megatron, edit(f"{MEGATRON}.idx", number(17, 6, "B")), "version 1 and type 6; read are"),
        (megatron, edit(f"{MEGATRON}.idx", number(18, 1 << 60, "<Q")), "and its counts need"),
        (megatron, edit(f"{MEGATRON}.idx", number(34, 9999)), "do not follow one another"),
        (
            megatron,
            edit(f"{MEGATRON}.idx", lambda c: c[:-8] + struct.pack("<q", 39)),
            "documents do not begin and en",
        ),
        (datatrove, edit(DATATROVE, lambda c: c[:-2]), "end at .*: it is cut short"),
        (datatrove, edit(f"{DATATROVE}.index", lambda c: c[:-8]), "index does not fit .*metadata"),
        (datatrove, edit(f"{DATATROVE}.index", lambda c: c[:-3]), "it is cut short. Fetch it"),
        (datatrove, edit(f"{DATATROVE}.metadata", replaced(b"|2", b"")), "does not tell the size"),
        (litdata, edit(CHUNK, lambda c: c[:-2]), "end at .*: it is cut short"),
        (litdata, edit(CHUNK, number(0, 41)), "does not begin with the 40 items"),
        (litdata, edit("train/index.json", replaced(b'"dim": ', b'"dim": 1')), "lists 1.* ids in"),
        (
            litdata,
            edit("train/index.json", replaced(b"0-0", b"0-1")),
            "does not describe chunk-0-0",
        ),
        (
            litdata,
            edit("train/index.json", replaced(b":5", b":9")),
            "written as 'no_header_numpy:9",
        ),
        (
            litdata,
            edit("train/index.json", replaced(b'"compression": null', b'"compression": "zstd"')),
            "its chunks are written in 'zstd'; read are plain",
        ),
        (numpy_file, edit(NPY, lambda c: c[:-2]), "is no whole .npy file"),
        (numpy_file, edit(NPY, lambda c: c + b"ab"), "there is more in it than that"),
        (numpy_file, edit(NPY, replaced(b"'<u2'", b"'<f2'")), "holds float16 of shape"),
        (numpy_file, edit(NPY, replaced(b"'<u2'", b"'|O' ")), "is no whole .npy file"),
    ],
)
def test_a_bad_file_is_named_with_what_was_found_and_what_to_do(
    write, damage, message, opened, written
):
    folder = written(write)
    damage(folder)
    with pytest.raises(ValueError, match=message) as caught:
        opened(folder, token_type=WRITERS[write])
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("change", [lambda i: i.reshape(1, -1), lambda i: i.astype("f4")])
def test_ids_in_another_array_are_read_once_they_are_saved_as_the_refusal_says(
    opened, written, change
):
    folder = written(numpy_file)
    path = folder / NPY
    right = opened(folder).splits["train"].n_bytes
    np.save(path, change(np.load(path)))
    with pytest.raises(ValueError, match="not one row of integers: write the ids with") as error:
        opened(folder)
    command = str(error.value).partition("write the ids with ")[2]
    exec(command, {"numpy": np, "path": path, "ids": np.load(path)})
    assert opened(folder).splits["train"].n_bytes == right


def test_too_few_ids_to_hold_some_out_are_refused(opened, written):
    folder = written(nanogpt)
    (folder / "val.bin").unlink()
    path = folder / "train.bin"
    path.write_bytes(path.read_bytes()[: 39 * 2])
    with pytest.raises(ValueError, match="too short: of 39 ids nothing can be held out"):
        opened(folder, token_type="uint16")


def test_other_containers_of_one_set_are_a_question(opened, written):
    folder = written(nanogpt)
    shutil.copy(folder / "train.bin", folder / "train.npy")
    with pytest.raises(ValueError, match=r"train\.bin.* look like the train split in two forms"):
        opened(folder, token_type="uint16")


def test_a_file_that_changes_after_it_was_checked_is_found(opened, written, tokenizer):
    folder = written(nanogpt)
    path = folder / "val.bin"
    prepared = opened(folder, token_type="uint16")
    state = path.stat()
    content = bytearray(path.read_bytes())
    content[:2] = b"\xff\xff"
    with open(path, "r+b") as file:  # in place, as it is mapped
        file.write(content)
    with pytest.raises(ShardError, match=r"val\.bin holds the id 65535, .*Run again: all ids are"):
        whole(prepared, "valid")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(ShardError, match=r"val\.bin fails its SHA-256 .*: touch it, and run again"):
        opened(folder, token_type="uint16", verify=True)
    path.touch()
    with pytest.raises(ValueError, match=r"val\.bin holds, as uint16, the id 65535"):
        opened(folder, token_type="uint16")
    content[:2] = b"\1\0"
    path.write_bytes(content)
    assert opened(folder, token_type="uint16").fingerprint != prepared.fingerprint


def test_a_damaged_manifest_is_made_anew(opened, written):
    folder = written(llm_c)
    made = opened(folder).folder
    for old, new in ((b'"of"', b'"off"'), (b'"start": 0', b'"start": "0"'), (b"{", b"")):
        content = (made / "manifest.json").read_bytes()
        (made / "manifest.json").write_bytes(content.replace(old, new))
        with pytest.raises(ShardError, match=r"manifest\.json cannot be used .*Delete the folder"):
            opened(folder)
        shutil.rmtree(made)
        opened(folder)


def test_gpt2s_own_tokenizer_has_a_name(monkeypatch, real_data, tmp_path, capsys):
    """As tiktoken keeps what it has fetched."""
    names = {
        "encoder.json": "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",
        "vocab.bpe": "6d1cbeee0f20b3d9449abfede4726ed8212e3aee",
    }
    for name, kept in names.items():
        shutil.copy(real_data / "gpt2-bpe" / name, tmp_path / kept)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    ids = np.array([50256, 15496, 995, 13, 50256, 464, 886, 13] * 10, dtype="<u2")
    ids.tofile(tmp_path / "train.bin")
    main(Arguments(str(tmp_path), "gpt2", token_type="uint16", cache_dir=tmp_path / "cache"))
    assert "train: 76 tokens, 19 documents, 2.5" in capsys.readouterr().out
    assert Tokenizer.load("gpt2").decode([15496, 995]) == "Hello world"


def test_without_a_network_gpt2s_tokenizer_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match=r"cannot be fetched .*copy here a folder with its token"):
        Tokenizer.load("gpt2")
