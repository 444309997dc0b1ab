"""Files of text: kinds, packings, encodings, and what is wrong with them."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import random
import re
import subprocess
import sys
from itertools import chain

import pytest

from gpt2.data import readers
from gpt2.data.readers import read_pieces
from gpt2.tokenizer.bpe import END_OF_TEXT as END
from tests.gpt2.data.corpora import joined, write


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


def test_shares_make_up_the_whole(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rows = [f"{random.Random(i).random()} {i} \u00e9\n" * (i % 9 + 1) for i in range(3000)]
    lines = "".join(json.dumps({"text": row}) + "\n" for row in rows)
    separated = io.StringIO(newline="")
    csv.writer(separated).writerows([["text"], *([row] for row in rows)])
    table = pa.table({"text": rows})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    for name, write_arrow in {"a": pa.ipc.new_stream, "b": pa.ipc.new_file}.items():
        with write_arrow(str(tmp_path / f"{name}.arrow"), table.schema) as file:
            file.write_table(table, max_chunksize=100)
    wiki = [json.dumps({"text": line}) + "\n" for line in ("", " = A = ", "", " It . ") * 2000]
    for name, content in [
        ("a.txt", END.join(rows)),
        ("b.txt", "".join(rows)),
        ("c.txt.gz", END.join(rows)),
        ("d.txt.zst", pa.compress("".join(rows).encode(), "zstd", True)),
        ("a.jsonl", lines),
        ("b.jsonl.gz", lines),
        ("c.jsonl", lines.encode("utf-16")),
        ("a.csv", separated.getvalue()),
        ("a.jsonl.bz2", bz2.compress(lines.encode())),
        ("wiki-1.jsonl", "".join(wiki[:3001])),
        ("wiki-2.jsonl", "".join(wiki[3001:])),
    ]:
        write(tmp_path / name, content)
    files = sorted(tmp_path.iterdir())
    for paths in [*([path] for path in files), files[-2:], files]:
        whole = [(piece.text, piece.last) for piece in read_pieces(*paths)]
        for of in (2, 3, 50):
            shares = [list(read_pieces(*paths, share=share, of=of)) for share in range(of)]
            assert [(piece.text, piece.last) for piece in chain(*shares)] == whole, (paths, of)
            if of == 3 and paths[0].name in ("a.jsonl", "b.arrow", "a.parquet"):
                assert all(800 < len(share) < 1200 for share in shares), paths


def test_a_share_reads_nothing_of_the_others(tmp_path):
    """Of five files those of others hold what would be refused, as do row groups of Parquet."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    for name in ("a.txt", "a.jsonl"):
        rows = [f"Story {i}." for i in range(10, 60)]
        text = [r + "\n" if name == "a.txt" else json.dumps({"text": r}) + "\n" for r in rows]
        parts = ["".join(text[i : i + 10]) for i in range(0, 50, 10)]
        paths = [write(tmp_path / f"{i}-{name}", part) for i, part in enumerate(parts)]
        for path in (*paths[1:3], paths[4]):
            write(path, b"\xff" * path.stat().st_size)
        found = "".join(joined(read_pieces(*paths, share=3, of=5)))
        assert found.replace("\n", "") == "".join(rows[30:40])
        with pytest.raises(ValueError, match=f"2-{name}"):
            list(read_pieces(*paths, share=2, of=5))
    path = tmp_path / "a.parquet"
    texts = [f"{i} {os.urandom(500).hex()}" for i in range(500)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=100, compression="none")
    column = pq.ParquetFile(path).metadata.row_group(2).column(0)
    content = bytearray(path.read_bytes())
    first, size = column.dictionary_page_offset, column.total_compressed_size
    content[first : first + size] = bytes(size)
    path.write_bytes(content)
    assert joined(read_pieces(path, share=4, of=5)) == texts[400:]
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read as Parquet"):
        list(read_pieces(path, share=2, of=5))


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
        (
            # a fixed time, as the content is part of the test's name
            gzip.compress(gzip.compress(b"text", mtime=0), mtime=0),
            "is packed twice: unpack it once",
        ),
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
