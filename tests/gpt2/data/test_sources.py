"""gpt2.data.sources and the modules below it: text in, documents out, every fault named."""

import os
import re
import shutil
from pathlib import Path

import pytest

from gpt2.data import sources
from tests.gpt2.data.corpora import joined, texts_of, write


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("nowhere.txt", r"nowhere\.txt: no such file or folder.*tinystories"),
        ("*.jsonl", r"matches no file"),
        ("empty-folder", r"no file in this folder can be used.*\.txt"),
        ("table.pdf", r"no known kind of file \(\.pdf\).*\.jsonl.*\.zst"),
        ("void.txt", r"void\.txt is empty"),
    ],
)
def test_nothing_to_read_is_said_clearly(tmp_path, opened, data, message):
    (tmp_path / "empty-folder").mkdir()
    for name in ("empty-folder/README.md", "empty-folder/.hidden.txt", "table.pdf"):
        write(tmp_path / name, "text")
    write(tmp_path / "void.txt", "")
    with pytest.raises(ValueError, match=message):
        opened(str(tmp_path / data))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["wiki.train.tokens.gz", "corpus_val.txt", "corpus_TEST.txt"], "train valid test"),
        (["train/a.txt", "train/b.txt", "dev/a.txt"], "train train valid"),
        (["validation-00000-of-00001.txt", "train-00000-of-00002.txt"], "valid train"),
        (["contest.txt", "retrain.txt", "latest-tests.txt"], "train train train"),
        (["a.txt", "testing.txt", "eval/b.txt", "evaluation.txt"], "train test test test"),
        (["a.txt", "b.md", "a.test.txt"], "train train test"),
        (["test.txt"], "test"),
        (["train.txt", "extra.txt"], "train -"),
        (["t.train.raw", "t.test.raw", "t.test.tokens"], "train test -"),
        (["README.md", ".cache/a.txt", "a.txt"], "- - train"),
    ],
)
def test_files_named_for_a_split_are_that_split(tmp_path, opened, files, expected):
    for name in files:
        write(tmp_path / "set" / name, f"I am {name}.")
    source = opened(str(tmp_path / "set"))
    found = {text: split for split, read in source.splits.items() for text in joined(read())}
    assert " ".join(found.get(f"I am {name}.", "-") for name in files) == expected
    said = "left out: extra.txt (not named for a split, as others are)"
    assert (said in source.notes) == ("extra.txt" in files)


def test_what_is_not_read_is_said_with_the_reason(tmp_path, opened):
    names = ["a.txt", "b.json", "b.html", "LICENSE", "sub/c.pdf", "sub/a-copy.txt", ".git/x.txt"]
    for name in [*names, *(f"{n}.png" for n in range(20))]:
        write(tmp_path / "set" / name, "text" if "a" in name else name)
    (note,) = (n for n in opened(str(tmp_path / "set")).notes if n.startswith("left out"))
    assert note.startswith("left out: LICENSE (about the data); 0.png, 1.png, 10.png, 11.png, ")
    assert note.endswith(" and 15 more (of no kind that is read); a-copy.txt (the same as a.txt)")
    (tmp_path / "linked").mkdir()
    write(tmp_path / "linked/a.txt", "text")
    (tmp_path / "linked/sub").symlink_to(tmp_path / "set")
    (tmp_path / "linked/gone.txt").symlink_to(tmp_path / "nowhere")
    (note,) = opened(str(tmp_path / "linked")).notes[1:]
    assert note == "left out: gone.txt, sub (a link to a folder or to nothing)"
    (note,) = opened(str(tmp_path / "set/*.*[tl]")).notes[1:]
    assert note == "left out: b.html (of no kind that is read)"


def test_files_that_are_not_here_are_said(tmp_path, opened):
    for split, numbers in (("train", (0, 2)), ("test", (0, 1))):
        for number in numbers:
            name = f"set/{split}-{number:05d}-of-0000{3 if split == 'train' else 2}.txt"
            write(tmp_path / name, f"{split} {number}")
    notes = opened(str(tmp_path / "set")).notes
    assert notes[1:] == ("of the 3 files train-*-of-00003.txt, 2 are here",)


def test_what_datasets_saved_to_disk_is_read_once(tmp_path, opened):
    """A folder of one data set, and of several splits; `map` keeps its results beside the text."""
    datasets = pytest.importorskip("datasets")
    rows = [f"Row {i}." for i in range(50)]
    whole = datasets.Dataset.from_dict({"text": rows})
    whole.save_to_disk(tmp_path / "one", num_shards=2)
    loaded = datasets.load_from_disk(tmp_path / "one")
    loaded.map(
        lambda row: {"text": row["text"] + "!"}, cache_file_name=str(tmp_path / "one/cache.arrow")
    )
    source = opened(str(tmp_path / "one"))
    assert texts_of(source) == {"train": rows}
    assert "left out: cache.arrow (kept by an operation of datasets)" in source.notes
    (tmp_path / "cached").mkdir()
    for name in ("one/data-00000-of-00002.arrow", "one/cache.arrow", "one/dataset_info.json"):
        copy = Path(name).name.replace("cache.", "cache-f00d.").replace("data-", "one-train-")
        shutil.copy(tmp_path / name, tmp_path / "cached" / copy)
    assert texts_of(opened(str(tmp_path / "cached"))) == {"train": rows[:25]}
    splits = datasets.DatasetDict(train=whole.shuffle(seed=1), validation=whole.select(range(3)))
    splits.save_to_disk(tmp_path / "several")
    found = texts_of(opened(str(tmp_path / "several")))
    assert (sorted(found["train"]), found["valid"]) == (sorted(rows), rows[:3])
    assert found["train"] == splits["train"]["text"]
    (tmp_path / "one/state.json").write_text('{"_data_files": [5]}')
    with pytest.raises(ValueError, match=r"one/state\.json is none of datasets"):
        opened(str(tmp_path / "one"))


def test_one_text_in_two_forms_is_a_question_for_the_user(tmp_path, opened):
    for name in ("a.train.raw", "a.train.tokens"):
        write(tmp_path / "set" / name, "text")
    with pytest.raises(ValueError, match=r"n\.raw and .*a\.train\.tokens look like one text"):
        opened(str(tmp_path / "set"))
    assert list(opened(str(tmp_path / "set" / "*.raw")).splits) == ["train"]


def test_a_split_in_two_formats_is_a_question_for_the_user(tmp_path, opened):
    write(tmp_path / "set/Stories-train.txt", "text")
    write(tmp_path / "set/sub/train.jsonl", '{"text": "text"}')
    with pytest.raises(ValueError, match=r"look like the train split in two forms") as error:
        opened(str(tmp_path / "set"))
    (remedy,) = re.findall(r"--data '(\S+)'", str(error.value))
    assert texts_of(opened(remedy)) == {"train": ["text"]}
    for kind in ("txt", "jsonl"):  # files of a folder that is named for a split may be of any kind
        write(tmp_path / f"mixed/train/{kind}.{kind}", f'{{"text": "{kind}"}}')
    assert len(texts_of(opened(str(tmp_path / "mixed")))["train"]) == 2


def test_a_source_is_known_by_its_content(tmp_path, opened, monkeypatch):
    path = write(tmp_path / "a.txt", "Some text.")
    first = opened(str(path)).fingerprint
    with monkeypatch.context() as patch:
        patch.setattr(sources, "sha256_file", None)  # unchanged by size and time: not read again
        assert opened(str(path)).fingerprint == first
    os.utime(path, ns=(1, 1))
    assert opened(str(path)).fingerprint == first
    assert opened(str(write(tmp_path / "b" / "c.txt", "Some text."))).fingerprint == first
    write(path, "Same size!")
    os.utime(path, ns=(2, 2))
    assert opened(str(path)).fingerprint != first
    (tmp_path / "cache" / "checksums.json").write_text("{ damaged")
    write(path, "Some text.")
    assert opened(str(path)).fingerprint == first


def test_a_file_name_that_is_not_utf8_is_said_before_anything_is_written(tmp_path, opened):
    path = tmp_path / os.fsdecode(b"caf\xe9.txt")
    try:
        path.touch()
    except OSError:
        pytest.skip("the file system takes no such name")
    with pytest.raises(ValueError, match=r"caf\\udce9\.txt' is not UTF-8: rename it"):
        opened(str(path))
    assert not list(tmp_path.rglob("checksums.json"))
