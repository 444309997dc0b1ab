"""Documents in running text and in rows."""

import csv
import gzip
import io
import json
from collections.abc import Iterator

import pytest

from gpt2.data import documents
from gpt2.data.documents import document_pieces, row_pieces, text_pieces
from gpt2.data.readers import read_pieces
from gpt2.data.sources import open_source
from gpt2.evaluate.word_perplexity import read_documents
from gpt2.tokenizer.bpe import END_OF_TEXT as END
from tests.gpt2.data.corpora import joined, write


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
