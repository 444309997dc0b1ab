"""Splits that the source does not name."""

from collections.abc import Iterator
from itertools import chain

import pytest

from gpt2.data import documents
from gpt2.data.documents import Piece, Source, document_pieces
from gpt2.data.splits import plan_splits, split_pieces
from gpt2.tokenizer.bpe import END_OF_TEXT as END
from tests.gpt2.data.corpora import joined, write


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
