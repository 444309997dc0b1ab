"""Documents on their way from a source to the tokenizer.

They come in pieces of some 256 KiB, so that no document is ever whole in memory. A long one is cut
only where a pre-token begins (see `gpt2.tokenizer.pretokens.cut`), so the ids of its pieces joined
are those of the whole. Half a million characters with no such place are no text, and are cut all
the same: memory stays bounded whatever a file unpacks to.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpt2.tokenizer import Tokenizer
from gpt2.tokenizer.bpe import END_OF_TEXT
from gpt2.tokenizer.pretokens import cut, in_batches

PIECE_CHARS = 1 << 18
_RUN_CHARS = 1 << 19  # the longest piece
_TAIL_CHARS = 1 << 12  # never cut off running text: it may hold half of a marker or a title
SPLITS = ("train", "valid", "test")

_WIKITEXT_LINE = re.compile(" .* \n")
_OPENING_ROWS = 8  # of a table, which tell whether it is WikiText

_MARKER = re.compile(re.escape(END_OF_TEXT))
# A WikiText article opens with its title, ` = Title = `, between blank lines of one space each.
_ARTICLE = re.compile(r"(?<=\n \n)(?= = (?!= )[^\n]*(?<! =) = \n \n)")
_FIRST_ARTICLE = re.compile(r"\s* = (?!= )[^\n]*(?<! =) = \n \n")


class Piece(NamedTuple):
    """A part of a document."""

    text: str
    last: bool  # the document ends with this piece
    consumed: int  # bytes read from the source since the last piece

    @property
    def chars(self) -> int:
        return len(self.text)

    @property
    def n_bytes(self) -> int:
        """The length of the text in UTF-8."""
        return len(self.text.encode("utf-8"))


@dataclass(frozen=True, slots=True)
class EncodedPiece:
    """A piece that was encoded before; its text is decoded where it is asked for."""

    ids: NDArray[np.unsignedinteger]
    last: bool
    chars: int
    n_bytes: int
    tokenizer: Tokenizer  # that wrote the ids
    consumed: int = 0

    @property
    def text(self) -> str:
        return self.tokenizer.decode(self.ids)


@dataclass(frozen=True)
class Source:
    """A corpus: its name, its own splits, and how to read them."""

    name: str  # short, usable in a file name
    fingerprint: str  # hex digits that change when the text, its order or its splits change
    # For each split the source names ("train" for text without a name), a function that reads it;
    # called with `share`, from 0, and `of`, one of so many parts that together make it up.
    splits: Mapping[str, Callable[..., Iterator[Piece | EncodedPiece]]]
    sizes: Mapping[str, int] = field(default_factory=dict)  # bytes that reading consumes, if known
    holdout: int = 20  # one document in this many is enough, if `sizes` does not say more
    notes: tuple[str, ...] = ()  # lines to tell the user
    details: Mapping[str, Any] = field(default_factory=dict)  # entries for the manifest
    # Of each split, files of token ids; a source has either these or text.
    token_files: Mapping[str, Sequence[Path]] = field(default_factory=dict)


def document_pieces(text: str, consumed: int = 0) -> Iterator[Piece]:
    """Cut one whole document into pieces. A text of white space alone is no document."""
    if not text or text.isspace():
        return
    *parts, rest = _cut(text)
    for part in parts:
        yield Piece(part, False, consumed)
        consumed = 0
    yield Piece(rest, True, consumed)


def row_pieces(rows: Iterable[tuple[str, int]], *, wikitext: bool | None = None) -> Iterator[Piece]:
    """Cut the texts of a table's rows into documents and pieces, as running text is.

    A row is a document, or several with `<|endoftext|>` between them. Rows that begin as WikiText
    does, a line in each, are its lines: they are joined, and split before each title.

    Args:
        rows: in order, each text with the number of bytes read for it. A row of white space is no
            document; in WikiText it is a blank line.
        wikitext: whether the table is WikiText; None: as these rows tell.
    """
    rows = iter(rows)
    if wikitext is None:
        first = list(itertools.islice(rows, _OPENING_ROWS))
        rows = itertools.chain(first, rows)
        wikitext = is_wikitext(first)
    if wikitext:
        lines = ((_line(text), consumed) for text, consumed in rows)
        batches = in_batches(lines, PIECE_CHARS, lambda line: len(line[0]))
        blocks = (("".join(t for t, _ in batch), sum(n for _, n in batch)) for batch in batches)
        yield from text_pieces(blocks, boundary=_ARTICLE)
        return
    for text, consumed in rows:
        text = text.replace("\r\n", "\n")
        if END_OF_TEXT in text:
            yield from text_pieces([(text, consumed)])
        else:
            yield from document_pieces(text, consumed)


def is_wikitext(rows: Iterable[tuple[str, int]]) -> bool:
    """Tell whether the first rows of a table are lines of WikiText, each with a space at both ends
    and blank ones between them; a file may begin within an article."""
    lines = [_line(text) for text, _ in itertools.islice(rows, _OPENING_ROWS)]
    filled = [line for line in lines if line.strip()]
    titled = _FIRST_ARTICLE.match("".join(lines)) is not None
    spaced = all(_WIKITEXT_LINE.fullmatch(line) for line in filled)
    return all(line.count("\n") == 1 for line in lines) and (
        titled or (spaced and 1 < len(filled) < len(lines))
    )


def _line(text: str) -> str:
    """A row as a line of WikiText, whose blank lines are one space."""
    return text.rstrip("\r\n") + "\n" if text.strip() else " \n"


def text_pieces(
    blocks: Iterable[tuple[str, int]], *, boundary: re.Pattern[str] | None = None
) -> Iterator[Piece]:
    """Split running text into documents, and these into pieces.

    Documents end at each `<|endoftext|>`, and the line ends around that marker belong to it. Text
    that opens like WikiText, with a ` = Title = ` line, is split before each such title instead,
    and loses no byte. Any other text is one document.

    Args:
        blocks: the text in order, cut anywhere, each block with the number of bytes read for it.
        boundary: what documents are split at; None: as the beginning tells.
    """
    buffer, consumed = "", 0
    opening = True  # the buffer begins with the beginning of a document
    marked = False  # a marker has occurred

    def piece(text: str, last: bool) -> Iterator[Piece]:
        nonlocal consumed, opening
        if marked and opening:
            text = text.lstrip("\r\n")
        if marked and last:
            text = text.rstrip("\r\n")
        if not (opening and last and (not text or text.isspace())):
            yield Piece(text, last, consumed)
            consumed = 0
        opening = last

    for text, count in blocks:
        buffer += text
        consumed += count
        if boundary is None:
            boundary = _ARTICLE if _FIRST_ARTICLE.match(buffer) else _MARKER
        *documents, buffer = boundary.split(buffer)
        marked = marked or (bool(documents) and boundary is _MARKER)
        for document in documents:
            *parts, rest = _cut(document)
            for part in parts:
                yield from piece(part, False)
            yield from piece(rest, True)
        *parts, rest = _cut(buffer[:-_TAIL_CHARS])
        for part in parts:
            yield from piece(part, False)
        buffer = rest + buffer[-_TAIL_CHARS:]
    yield from piece(buffer, True)


def _cut(text: str) -> Iterator[str]:
    """Pieces of a document, at least one."""
    for part in cut(text, PIECE_CHARS):
        for start in range(0, len(part) or 1, _RUN_CHARS):
            yield part[start : start + _RUN_CHARS]
