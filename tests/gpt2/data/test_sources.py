"""gpt2.data.sources and the modules below it: text in, documents out, every fault named."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

from gpt2.data import documents, readers, sources
from gpt2.data.documents import Piece, Source, document_pieces, row_pieces, text_pieces
from gpt2.data.python_docs import python_docs
from gpt2.data.readers import read_pieces
from gpt2.data.sources import open_source
from gpt2.data.splits import plan_splits, split_pieces
from gpt2.evaluate.word_perplexity import read_documents

END = "<|endoftext|>"


def joined(pieces: Iterator[Piece]) -> list[str]:
    """The documents that pieces make up."""
    texts = [""]
    for piece in pieces:
        texts[-1] += piece.text
        if piece.last:
            texts.append("")
    assert texts.pop() == "", "the last document has no end"
    return texts


def write(path: Path, content: str | bytes) -> Path:
    data = content.encode("utf-8") if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(documents, "PIECE_CHARS", 64)
    monkeypatch.setattr(documents, "_TAIL_CHARS", 40)
    monkeypatch.setattr(readers, "PIECE_CHARS", 64)


# Documents in running text


def in_blocks(text: str, size: int) -> Iterator[tuple[str, int]]:
    return ((text[i : i + size], size) for i in range(0, len(text), size))


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("size", [1, 2, 13, 64, 1000])
def test_text_is_split_at_the_marker_alone_wherever_the_reading_cuts_it(size):
    stories = ["One day.\n\nThe end.", "Two " * 50 + "days.", "Three."]
    for line_end in ("\n", "\r\n", ""):
        text = f"{line_end}{END}{line_end}".join(["", *stories, " \n", ""])
        assert joined(text_pieces(in_blocks(text, size))) == stories
    text = "\n\nTo be,  or not\n" * 30 + "\n"
    assert joined(text_pieces(in_blocks(text, size))) == [text]


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("size", [40, 64, 1000])
def test_wikitext_is_split_into_articles_with_nothing_lost(size):
    body = " \n = {} = \n \n Text with a = 2 = b . \n \n = = Section = = \n \n More text . \n"
    articles = [(body + " Filler . \n" * i).format(f"Title {i}") for i in range(6)]
    found = joined(text_pieces(in_blocks("".join(articles) + " \n", size)))
    assert "".join(found) == "".join(articles) + " \n"
    assert [text.strip().splitlines()[0] for text in found] == [f"= Title {i} = " for i in range(6)]


def test_rows_of_wikitext_may_begin_within_an_article():
    rows = [
        "",
        " Text . \n",
        "",
        " = = Part = = \n",
        "",
        " More . \n",
        "",
        " = Two = \n",
        "",
        " It . \n",
    ]
    found = joined(row_pieces((row, 1) for row in rows))
    ended = [row or " \n" for row in rows]
    assert found == ["".join(ended[:7]), "".join(ended[7:])]
    for others in (
        ["Text.\n", "", "More.\n"],
        [" Text . \n", " More . \n"],
        [" a \n b \n", "", "c"],
    ):
        assert joined(row_pieces((row, 1) for row in others)) == [row for row in others if row]


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("size", [7, 64, 1000])
@pytest.mark.parametrize("run", ["\0" * 1000, " " * 1000, "a" * 300 + " " + "b" * 300])
def test_what_has_no_place_to_cut_is_cut_all_the_same(monkeypatch, run, size):
    """Else a file that unpacks to nothing but zeros would be one piece, of any size."""
    monkeypatch.setattr(documents, "_RUN_CHARS", 128)
    text = f"before {run} after"
    for pieces in (list(text_pieces(in_blocks(text, size))), list(document_pieces(text))):
        assert "".join(piece.text for piece in pieces) == text
        assert max(len(piece.text) for piece in pieces) <= 128
        assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]


# Files


def test_kinds_of_files_give_the_same_documents(tmp_path):
    """Whatever the container: packed or not, its encoding, its line ends, rows without text, and
    the marker inside a row or between rows."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    stories = ["One \u00e9t\u00e9.\x0c\u2028 One.", 'Two\n"lines", two.', "\u4e2d\u6587", "Four."]
    rows = [*stories[:2], None, f"{stories[2]}\n{END}\n{stories[3]}{END}", "", " \n"]
    windows = [row and row.replace("\n", "\r\n") for row in rows]
    text = f"\n{END}\n".join([*stories, ""])
    marked = "\ufeff" + text.replace("\n", "\r\n")
    lines = "\n\n".join(json.dumps({"id": 1, "text": row}) for row in rows)
    separated = io.StringIO(newline="")
    csv.writer(separated).writerows([["id", "text"], *([1, row] for row in windows)])
    tabs = separated.getvalue().replace("1,", "1\t").replace("id,", "id\t")
    table = pa.table({"text": windows, "n": range(6)})
    pq.write_table(table, tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": table["text"].dictionary_encode()}), tmp_path / "b.parquet")
    for name, write_arrow in {"a": pa.ipc.new_stream, "b": pa.ipc.new_file}.items():
        with write_arrow(str(tmp_path / f"{name}.arrow"), table.schema) as file:
            file.write_table(table)
    for name, content in [
        ("a.txt", text),
        ("b.md", marked),
        ("c.tokens.gz", text),
        ("c.txt.zst", pa.compress(text.encode(), codec="zstd", asbytes=True)),
        # As pzstd writes it, after a frame to be skipped.
        ("d.txt.zst", b"\x50\x2a\x4d\x18\4\0\0\0size" + pa.compress(text.encode(), "zstd", True)),
        ("c.txt.bz2", bz2.compress(text.encode())),
        ("c.txt.xz", lzma.compress(text.encode())),
        ("unnamed-gzip.txt", gzip.compress(text.encode())),
        ("d.jsonl", "\ufeff" + lines),
        ("e.ndjson.gz", lines),
        ("e.jsonl.zst", pa.compress(lines.replace("\n", "\r\n").encode(), "zstd", True)),
        ("f.csv", "\ufeff" + separated.getvalue()),
        ("f.CSV.bz2", bz2.compress(separated.getvalue().encode())),
        ("f.tsv", tabs),
        *(
            (f"{name}-{encoding}{suffix}", content.encode(encoding))
            for encoding in ("utf-16", "utf-32")
            for name, suffix, content in (
                ("g", ".txt", text),
                ("h", ".jsonl", lines),
                ("i", ".csv", separated.getvalue()),
            )
        ),
    ]:
        write(tmp_path / name, content)
    for path in tmp_path.iterdir():
        assert joined(read_pieces(path)) == stories, path


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_a_line_end_cut_by_the_reading_is_one(tmp_path, packed):
    for shift in range(70):
        path = write(tmp_path / f"a.txt{packed}", "y" + "x" * shift + "\r\n\r" * 50 + "\r")
        assert joined(read_pieces(path)) == ["y" + "x" * shift + "\n\r" * 50 + "\r"]


@pytest.mark.parametrize(
    ("written", "message", "read"),
    [
        ("utf-16-le", r"NUL .*(iconv -f UTF-16LE -t UTF-8)", True),
        ("utf-16-be", r"NUL .*(iconv -f UTF-16BE -t UTF-8)", True),
        ("utf-32-le", r"NUL .*(iconv -f UTF-32LE -t UTF-8)", True),
        ("utf-32-be", r"NUL .*(iconv -f UTF-32BE -t UTF-8)", True),
        ("cp1252", r"is not UTF-8: byte 13 .*(iconv -f WINDOWS-1252 -t UTF-8)", True),
        ("gb18030", r"is not UTF-8: byte 13 .*for example with: (iconv -f WIN\S+ -t UTF-8)", False),
    ],
)
@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl"])
def test_the_remedy_for_another_encoding_works(tmp_path, written, message, read, suffix):
    text = json.dumps({"text": "caf\u00e9 \u201cau lait\u201d"}, ensure_ascii=False) + "\n"
    text = {".txt": text, ".jsonl": text, ".csv": "text\r\ncaf\u00e9\r\n"}[suffix] * 3
    right = joined(read_pieces(write(tmp_path / f"right{suffix}", text)))
    path = write(tmp_path / f"a{suffix}", text.encode(written))
    with pytest.raises(ValueError, match=message if suffix == ".txt" else "UTF") as error:
        list(read_pieces(path))
    found = re.search(r"iconv -f \S+ -t UTF-8", str(error.value))
    assert found
    done = subprocess.run([*found[0].split(), path], capture_output=True)
    if read:
        assert joined(read_pieces(write(path, done.stdout))) == right


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04\x14\0", "no text but a zip archive"),
        (b"%PDF-1.7\n%\xe2", "no text but a PDF: take its text out"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "no text but git-lfs's place-holder"),
        (b"PAR1\x15\0", "no text but a Parquet file: name it .parquet"),
        (b"ARROW1\0\0", "no text but an Arrow file: name it .arrow"),
        (b"On\0c\0e\0 ", "one in eight of its first characters is NUL"),
        (b"\x7fELF\x02\xff" + b"a" * 99 + b"\0", "has NUL bytes, as in binary files"),
        (
            bytes(999),
            r"one in eight of its first characters is NUL \(U\+0000\), as in binary files",
        ),
        (gzip.compress(gzip.compress(b"text")), "is packed twice: unpack it once"),
        ("caf\u00e9".encode("utf-16")[:-1], "is not UTF-16: byte 8 .* damaged, or cut off"),
    ],
)
def test_what_is_no_text_is_called_what_it_is(tmp_path, content, message):
    with pytest.raises(ValueError, match=message) as error:
        list(read_pieces(write(tmp_path / "a.txt", content)))
    assert "WINDOWS" not in str(error.value)


def test_a_place_holder_for_a_table_is_called_so(tmp_path):
    pytest.importorskip("pyarrow")
    for name in ("a.parquet", "a.arrow", "a.jsonl", "a.csv", "a.jsonl.xz"):
        with pytest.raises(ValueError, match="git-lfs's place-holder: fetch it, with git lfs pull"):
            list(
                read_pieces(write(tmp_path / name, "version https://git-lfs.github.com/spec/v1\n"))
            )


def test_a_document_too_long_for_a_line_may_be_given_as_text(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "LINE_BYTES", 1000)
    text = "word " * 300
    for name, line in (("a.jsonl", json.dumps({"text": text})), ("a.csv", f"text\n{text}")):
        with pytest.raises(ValueError, match=r"line \d: longer than .* or give it as \.txt"):
            list(read_pieces(write(tmp_path / name, line)))
    assert joined(read_pieces(write(tmp_path / "a.txt", text))) == [text]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("title,body\na,b\n", r'no column "text"\. Columns: title, body'),
        ("text,text\na,b\n", 'several columns "text"'),
        ("id,text\n1,a\n2,b,c\n", "line 3: not CSV \\(3 fields, and the header has 2"),
        ("id,text\n1,a\n2\n", "line 3: not CSV \\(1 fields"),
        ('text\n"a\nb\n', "line 3: not CSV"),
    ],
)
def test_bad_csv_is_named_with_its_line(tmp_path, content, message):
    with pytest.raises(ValueError, match=rf"a\.csv.*{message}"):
        list(read_pieces(write(tmp_path / "a.csv", content)))


def test_progress_adds_up_to_the_size_on_disk(tmp_path):
    text = "".join(json.dumps({"text": f"Story {i}."}) + "\n" for i in range(20_000))
    for name in ("a.txt", "a.txt.gz", "a.jsonl"):
        path = write(tmp_path / name, text)
        consumed = sum(piece.consumed for piece in read_pieces(path))
        assert 0.99 * path.stat().st_size <= consumed <= path.stat().st_size


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("name", ["bad.txt", "bad.txt.gz"])
def test_bad_utf8_is_named_with_its_byte(tmp_path, name):
    for offset in (0, 63, 64, 1000):
        text = ("\u00e9\n" * 500).encode()[:offset] + b"\xff" + b"more text\n" * 20
        expected = offset - offset % 3 if offset % 3 == 1 else offset  # a character begun before it
        path = write(tmp_path / name, text)
        with pytest.raises(ValueError, match=rf"{name} is not UTF-8: byte {expected:,} "):
            list(read_pieces(path))
    with pytest.raises(ValueError, match=rf"{name} is not UTF-8: byte 3 "):
        list(read_pieces(write(path, "abc\u00e9".encode()[:-1])))  # cut at the end


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a"', "line 2: not JSON"),
        (b'["text"]', "line 2: a list; expected an object"),
        (b'{"content": "a", "id": 1}', r"line 2: .*missing\. Keys found: 'content', 'id'"),
        (b'{"text": 5}', "line 2: .*is no string"),
        (b'{"text": "\\ud800"}', "line 2: .*surrogate"),
        (b'{"text": "\xff"}', "not UTF-8: line 2, its byte 10"),
    ],
)
def test_a_bad_line_of_json_is_named(tmp_path, line, message):
    path = write(tmp_path / "rows.jsonl", b'{"text": "good"}\n' + line + b"\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl.*" + message):
        list(read_pieces(path))


def test_a_broken_gzip_is_named(tmp_path):
    whole = gzip.compress(os.urandom(5000).hex().encode(), mtime=0)
    path = tmp_path / "a.txt.gz"
    for content in (whole[:-20], whole[:-6] + b"\0" * 6):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.txt\.gz is not a whole gzip file"):
            list(read_pieces(path))
    path.write_bytes(b"unpacked by a browser")
    with pytest.raises(ValueError, match=r"is no gzip file, although .*: name it for what it is"):
        list(read_pieces(path))
    assert joined(read_pieces(path.rename(tmp_path / "a.txt"))) == ["unpacked by a browser"]


def test_parquet_faults_are_named(tmp_path, monkeypatch):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    for columns, message in [
        ({"body": ["a"], "id": [1]}, r': no column "text"\. Columns: body, id'),
        ({"text": [1, 2]}, r': the column "text" holds no strings'),
        ({}, " cannot be read as Parquet"),
        ({}, " needs pyarrow: pip install"),
    ]:
        pq.write_table(pa.table(columns), path) if columns else write(path, "not Parquet")
        if "pyarrow" in message:
            monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(ValueError, match=r"a\.parquet" + message):
            list(read_pieces(path))


def test_a_table_named_for_another_is_called_what_it_is(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq
    from pyarrow.feather import write_feather

    table = pa.table({"text": ["a text"]})
    for write_table, wrong, right in (
        (pq.write_table, ".arrow", ".parquet"),
        (write_feather, ".parquet", ".arrow"),
    ):
        path = tmp_path / f"a{wrong}"
        write_table(table, path)
        with pytest.raises(ValueError, match=rf"{right[1:].title()} file: name it \{right}"):
            list(read_pieces(path))
        assert joined(read_pieces(path.rename(tmp_path / f"b{right}"))) == ["a text"]


# What --data names


@pytest.fixture
def opened(tmp_path):
    return lambda data: open_source(data, cache_dir=tmp_path / "cache")


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


def write_rows(folder: Path, **splits: list[str]) -> None:
    """Parquet files as the hub names them."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        pq.write_table(pa.table({"text": rows}), folder / f"{split}-00000-of-00001.parquet")


def card(*configurations: str) -> str:
    return "---\nlicense: mit\nconfigs:\n" + "".join(configurations) + "---\n# A data set\n"


def texts_of(source: Source) -> dict[str, list[str]]:
    return {split: joined(read()) for split, read in source.splits.items()}


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


@pytest.mark.parametrize("wrong", ["- 5\n", "- config_name: [\n", "- data_files: x\n"])
def test_a_card_that_cannot_be_read_is_named(tmp_path, opened, wrong):
    pytest.importorskip("yaml")
    write_rows(tmp_path / "set", train=["text"])
    write(tmp_path / "set/README.md", card(wrong))
    with pytest.raises(ValueError, match=r"README\.md names configurations that cannot be read"):
        opened(str(tmp_path / "set"))
    assert texts_of(opened(str(tmp_path / "set/*.parquet"))) == {"train": ["text"]}


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


# Splits that the source does not name


def source_of(texts: list[str], **sizes: int) -> Source:
    def read() -> Iterator[Piece]:
        for text in texts:
            yield from document_pieces(text)

    return Source("made", "00", {"train": read}, sizes=sizes)


def split_up(source: Source) -> dict[str, list[str]]:
    pieces = list(split_pieces(source, plan_splits(source)))
    return {split: joined(p for name, p in pieces if name == split) for split in documents.SPLITS}


@pytest.mark.usefixtures("small_pieces")
def test_many_documents_are_divided_by_document():
    texts = [f"{i} " * (i % 90 + 1) for i in range(205)]
    splits = split_up(source_of(texts))
    assert splits == split_up(source_of(texts))
    assert sorted(chain(*splits.values())) == sorted(texts)
    for split in ("valid", "test"):
        groups = [int(text.split()[0]) // 20 for text in splits[split]]
        assert groups[:10] == list(range(10))  # one in each twenty
        assert len({int(text.split()[0]) % 20 for text in splits[split]}) > 3  # at no fixed place
    large = split_up(source_of([f"{i}" for i in range(4000)], train=10_000_000_000))
    assert len(large["valid"]) == len(large["test"]) == 4  # a smaller part


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("documents_in_it", [1, 3])
def test_few_documents_are_divided_by_position(documents_in_it):
    texts = [f"Paragraph {i}.\nIt has two lines.\n\n" for i in range(300)]
    size = len(texts) // documents_in_it
    whole = ["".join(texts[i : i + size]) for i in range(0, len(texts), size)]
    splits = split_up(source_of(whole))
    assert "".join(chain(*splits.values())) == "".join(texts)
    for split in ("valid", "test"):
        assert len("".join(splits[split])) == pytest.approx(len("".join(texts)) / 20, rel=0.2)
        assert splits[split][0].startswith(("Paragraph", "It has"))  # with a whole line


def test_splits_the_source_names_are_left_alone(tmp_path, opened):
    write(tmp_path / "set/train.txt", END.join(f"train {i}" for i in range(100)))
    write(tmp_path / "set/valid.txt", END.join(f"valid {i}" for i in range(30)))
    splits = split_up(opened(str(tmp_path / "set")))
    assert splits["valid"] == [f"valid {i}" for i in range(30)]
    assert len(splits["test"]) == 5
    assert all(text.startswith("train") for text in splits["test"] + splits["train"])
    write(tmp_path / "set/test.txt", "test 0")
    splits = split_up(opened(str(tmp_path / "set")))
    assert splits["test"] == ["test 0"]
    assert len(splits["train"]) == 100


# The text of every CPython


def test_python_docs_are_prose_read_without_importing_anything(tmp_path, monkeypatch):
    library = Path(sysconfig.get_path("stdlib"))
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(ValueError, match=r"--data python-docs reads .*--data my\.txt"):
        python_docs()
    for name in ("json/__init__.py", "this.py", "pydoc_data/topics.py"):
        write(tmp_path / name, (library / name).read_bytes())
    write(tmp_path / "test/support.py", '"""No prose."""')
    write(tmp_path / "bad.py", "print 1")
    monkeypatch.delitem(sys.modules, "this", raising=False)
    source = python_docs()
    texts = joined(source.splits["train"]())
    assert "this" not in sys.modules
    assert texts == joined(source.splits["train"]())
    assert python_docs().fingerprint == source.fingerprint
    assert texts[0].startswith("json\n\n")
    assert "json.dumps\n\nSerialize ``obj`` to a JSON formatted ``str``." in texts[0]
    assert any('The "assert" statement' in text for text in texts)
    assert not any(text.startswith(("bad", "test.")) for text in texts)
    assert f"{sys.version_info.major}.{sys.version_info.minor}." in source.notes[0]


# Real text


def test_wikitext_articles_are_all_found(real_data):
    """The published WikiText-2 has 600 articles for training, and 60 in the other splits."""
    path = real_data / "wikitext-2" / "wiki.train.tokens.gz"
    texts = joined(read_pieces(path))
    assert len(texts) == 600
    assert "".join(texts).encode() == gzip.decompress(path.read_bytes())


@pytest.mark.parametrize("form", ["parquet", "jsonl", "csv", "arrow", "windows", "unended"])
def test_wikitext_in_rows_is_wikitext(real_data, tmp_path, form):
    """A line a row, as the hub has it, with nothing for a blank line; in two files, of which the
    second begins within an article. The figures are the published ones."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    packed = real_data / "wikitext-2" / "wiki.test.tokens.gz"
    text = gzip.decompress(packed.read_bytes()).decode()
    rows = [line if line.strip() else "" for line in text.splitlines(keepends=True)]
    assert len(rows) == 4358
    for number, part in enumerate((rows[:1000], rows[1000:])):
        stem = tmp_path / f"set/test-0000{number}-of-00002"
        if form == "parquet":
            stem.parent.mkdir(exist_ok=True)
            pq.write_table(pa.table({"text": part}), f"{stem}.parquet")
        elif form == "arrow":
            stem.parent.mkdir(exist_ok=True)
            table = pa.table({"text": part})
            with pa.ipc.new_stream(f"{stem}.arrow", table.schema) as file:
                file.write_table(table)
        elif form == "csv":
            separated = io.StringIO(newline="")
            csv.writer(separated).writerows([["text"], *([row] for row in part)])
            write(stem.with_suffix(".csv"), separated.getvalue())
        else:
            ended = {"jsonl": "\n", "windows": "\r\n", "unended": ""}[form]
            values = [row.replace("\n", ended) if row else None for row in part]
            lines = (json.dumps({"text": value}) + "\n" for value in values)
            write(stem.with_suffix(".jsonl"), "".join(lines))
    found = read_documents(open_source(str(tmp_path / "set"), cache_dir=tmp_path), "test")
    assert found == joined(read_pieces(packed))
    assert len(found) == 60
    assert sum(len(d.split()) + d.count("\n") for d in found) == 245_569


def test_a_file_name_that_is_not_utf8_is_said_before_anything_is_written(tmp_path, opened):
    path = tmp_path / os.fsdecode(b"caf\xe9.txt")
    try:
        path.touch()
    except OSError:
        pytest.skip("the file system takes no such name")
    with pytest.raises(ValueError, match=r"caf\\udce9\.txt' is not UTF-8: rename it"):
        opened(str(path))
    assert not list(tmp_path.rglob("checksums.json"))
