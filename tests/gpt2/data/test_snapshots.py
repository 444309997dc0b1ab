"""Snapshots of data sets of the hub: cards, configurations, splits."""

import re
import sys
from pathlib import Path

import pytest

from gpt2.tokenizer.bpe import END_OF_TEXT as END
from tests.gpt2.data.corpora import texts_of, write


def write_rows(folder: Path, **splits: list[str]) -> None:
    """Parquet files as the hub names them."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        pq.write_table(pa.table({"text": rows}), folder / f"{split}-00000-of-00001.parquet")


def card(*configurations: str) -> str:
    return "---\nlicense: mit\nconfigs:\n" + "".join(configurations) + "---\n# A data set\n"


def test_a_snapshot_without_a_card_is_the_files_of_data(tmp_path, opened):
    """TinyStories holds its stories as .txt too."""
    write(tmp_path / "set/README.md", "---\nlicense: mit\n---\n")
    write(tmp_path / "set/Stories-train.txt", f"One.{END}Two.")
    write(tmp_path / "set/Stories-valid.txt", "Held out.")
    write_rows(tmp_path / "set/data", train=["One.", "Two."], validation=["Held out."])
    source = opened(str(tmp_path / "set"))
    assert texts_of(source) == {"train": ["One.", "Two."], "valid": ["Held out."]}
    assert any("Stories-train.txt, Stories-valid.txt (not a split of" in n for n in source.notes)


TWO = [
    "- config_name: raw\n  data_files:\n  - split: train\n    path: raw/train-*\n"
    "  - split: validation\n    path:\n    - raw/validation-*\n",
    "- config_name: cooked\n  data_files:\n    train: cooked/train-*\n    extra: cooked/test-*\n",
]


@pytest.mark.parametrize(
    ("readme", "expected"),
    [
        (None, None),
        (card(*TWO), None),
        (card(TWO[0] + "  default: true\n", TWO[1]), {"train": ["raw"], "valid": ["raw v"]}),
        (card(TWO[1]), {"train": ["cooked"]}),
        (
            card("- config_name: default\n  data_files: raw/*\n", TWO[1]),
            {"train": ["raw", "raw v"]},
        ),
        (card("- config_name: x\n  data_dir: raw\n"), {"train": ["raw"], "valid": ["raw v"]}),
        (
            card("- config_name: x\n"),
            {"train": ["cooked", "raw"], "valid": ["raw v"], "test": ["cooked t"]},
        ),
        (card("- config_name: x\n  data_files: '**/train-*'\n"), {"train": ["cooked", "raw"]}),
        (card(TWO[0]).replace("\n", "\r\n"), {"train": ["raw"], "valid": ["raw v"]}),
    ],
)
def test_a_snapshot_is_read_by_its_card(tmp_path, opened, readme, expected):
    pytest.importorskip("yaml")
    write_rows(tmp_path / "set/raw", train=["raw"], validation=["raw v"])
    write_rows(tmp_path / "set/cooked", train=["cooked"], test=["cooked t"])
    if readme:
        write(tmp_path / "set/README.md", readme)
    if expected is not None:
        assert texts_of(opened(str(tmp_path / "set"))) == expected
        return
    with pytest.raises(ValueError, match="holds 2 data sets, or configurations of one") as error:
        opened(str(tmp_path / "set"))
    remedies = re.findall(r"--data (\S+) \(", str(error.value))
    found = [texts_of(opened(remedy))["train"] for remedy in sorted(remedies)]
    assert found == [["cooked"], ["raw"]]
    (everything,) = re.findall(r"--data '(\S+)'", str(error.value))
    assert texts_of(opened(everything))["train"] == ["cooked", "raw"]


@pytest.mark.parametrize(
    ("files", "choices"),
    [
        (["en/train.txt", "en/test.txt", "fr/train.txt", "fr/dev.txt"], ["en", "fr"]),
        (["a/train/0.txt", "a/test/0.txt", "b/train/0.txt", "b/test/0.txt"], ["a", "b"]),
        (["train.txt", "test.txt", "old/train.txt", "old/test.txt"], ["set", "old"]),
        (["train/a.txt", "train/b.txt", "test/a.txt", "test/b.txt"], []),
        (["a/train.txt", "b/train.txt", "c/test.txt"], []),
    ],
)
def test_folders_that_each_have_splits_are_a_question(tmp_path, opened, files, choices):
    for name in files:
        write(tmp_path / "set" / name, name)
    if not choices:
        assert sum(map(len, texts_of(opened(str(tmp_path / "set"))).values())) == len(files)
        return
    with pytest.raises(ValueError, match="holds 2 data sets, or configurations of one") as error:
        opened(str(tmp_path / "set"))
    found = re.findall(r"--data (\S+) \((\w+)\)", str(error.value))
    assert [name for _, name in found] == choices
    assert all(len(texts_of(opened(remedy.strip("'")))["train"]) == 1 for remedy, _ in found)


def test_configurations_in_one_folder_are_told_apart(tmp_path, opened):
    pytest.importorskip("yaml")
    names = ("a-1", "a-2", "b-1", "b-2", "c")
    for name in names:
        write(tmp_path / f"set/{name}.txt", name)
    one = "- config_name: {0}\n  data_files: {0}*.txt\n"
    write(tmp_path / "set/README.md", card(*map(one.format, "abc")))
    with pytest.raises(ValueError, match="holds 3 data sets, or configurations of one") as error:
        opened(str(tmp_path / "set"))
    remedies = re.findall(r"--data (\S+) \((\w)\)", str(error.value))
    found = [texts_of(opened(remedy.strip("'"))) for remedy, _ in remedies]
    assert found == [{"train": ["a-1", "a-2"]}, {"train": ["b-1", "b-2"]}, {"train": ["c"]}]


def test_splits_of_other_names_are_not_said_to_be_missing(tmp_path, opened):
    pytest.importorskip("yaml")
    write_rows(tmp_path / "set/data", train_sft=["a chat"], test_sft=["another"])
    one = "- config_name: x\n  data_files:\n  - split: train_sft\n    path: data/train_sft-*\n"
    write(tmp_path / "set/README.md", card(one))
    message = r"the configuration x, .* has no split train, valid or test: .*, such as (\S+)$"
    with pytest.raises(ValueError, match=message) as error:
        opened(str(tmp_path / "set"))
    assert texts_of(opened(str(error.value).split()[-1])) == {"train": ["a chat"]}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("- 5\n", "names configurations that cannot be read"),
        ("- config_name: [\n", "names configurations that cannot be read"),
        ("- data_files: x\n", "names configurations that cannot be read"),
        pytest.param(
            "- config_name: x\n  data_files: '**.parquet'\n",
            r"'\*\*\.parquet' is no pattern of files: mend it, or give",
            marks=pytest.mark.skipif(sys.version_info >= (3, 13), reason="it is one there"),
        ),
    ],
)
def test_a_card_that_cannot_be_read_is_named(tmp_path, opened, wrong, message):
    pytest.importorskip("yaml")
    write_rows(tmp_path / "set", train=["text"])
    write(tmp_path / "set/README.md", card(wrong))
    with pytest.raises(ValueError, match=rf"README\.md:? {message}"):
        opened(str(tmp_path / "set"))
    assert texts_of(opened(str(tmp_path / "set/*.parquet"))) == {"train": ["text"]}


def test_the_hubs_cache_is_read_at_its_newest_revision(tmp_path, opened):
    root = tmp_path / "datasets--owner--name"
    write(root / "refs/main", "b1")
    for revision in ("a0", "b1"):
        (root / "blobs").mkdir(exist_ok=True)
        write(root / "blobs" / revision, f"Text of {revision}.")
        (root / "snapshots" / revision).mkdir(parents=True)
        (root / "snapshots" / revision / "train.txt").symlink_to(root / "blobs" / revision)
    assert texts_of(opened(str(root))) == {"train": ["Text of b1."]}
    (root / "refs/main").unlink()
    with pytest.raises(ValueError, match="holds 2 data sets") as error:
        opened(str(root))
    remedies = re.findall(r"--data (\S+) \(", str(error.value))
    assert texts_of(opened(remedies[0])) == {"train": ["Text of a0."]}
