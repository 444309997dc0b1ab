"""Splits of a source that does not name its own.

Of a source with many documents, one document in every 20 is for validation and one for test (fewer
of a large source), drawn by a hash, so that the choice depends only on the order of the documents.
A source with few documents, such as a single book, is cut by position instead: first the training
text, then validation, then test, each from the beginning of a paragraph or a line.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

from gpt2.data.documents import SPLITS, EncodedPiece, Piece, Source

HOLDOUT = 20  # one document in this many, or this fraction of the text
HELD_OUT_BYTES = 10_000_000  # of the stored text: enough for a split held out of a large source


@dataclass(frozen=True)
class SplitPlan:
    """A plan for the splits that a source does not name."""

    taken: tuple[str, ...] = ()  # these splits, which are taken out of the training text
    every: int = 0  # each gets one document of every so many; 0 if they are cut by position
    starts: tuple[int, ...] = ()  # cut by position: the character where each of them begins
    note: str = ""  # the same in words; empty if nothing is taken


def plan_splits(source: Source) -> SplitPlan:
    """Decide how `source` is divided. Reads only as many documents as that takes."""
    taken = tuple(split for split in SPLITS[1:] if split not in source.splits)
    if "train" not in source.splits or not taken:
        return SplitPlan()
    stored = source.sizes.get("train", 0)
    every = max(source.holdout, HOLDOUT, math.ceil(stored / HELD_OUT_BYTES))
    documents = characters = 0
    for piece in source.splits["train"]():
        documents += piece.last
        characters += piece.chars
        if documents >= every:
            each = "each one" if len(taken) > 1 else "one"
            note = f"{' and '.join(taken)}: {each} in {every:,} documents of the training text"
            return SplitPlan(taken, every=every, note=note)
    size = characters // every
    starts = tuple(characters - size * left for left in range(len(taken), 0, -1))
    each = "each 1" if len(taken) > 1 else "1"
    note = f"{' and '.join(taken)}: {each}/{every} of the training text, at its end, in this order"
    return SplitPlan(taken, starts=starts, note=note)


def split_pieces(
    source: Source, plan: SplitPlan, *, only: str | None = None
) -> Iterator[tuple[str, Piece | EncodedPiece]]:
    """All pieces of a source, each with its split, in an order that never changes.

    `only` reads one of the source's own splits; its "train" includes the splits taken from it.
    """
    for split, read in source.splits.items():
        if only not in (None, split):
            continue
        if split != "train" or not plan.taken:
            yield from ((split, piece) for piece in read())
        elif plan.every:
            yield from _by_document(read(), plan)
        else:
            yield from _by_position(read(), plan)


def _by_document(
    pieces: Iterator[Piece | EncodedPiece], plan: SplitPlan
) -> Iterator[tuple[str, Piece | EncodedPiece]]:
    document = 0
    slots = _slots(0, plan)
    for piece in pieces:
        yield slots.get(document % plan.every, "train"), piece
        document += piece.last
        if piece.last and document % plan.every == 0:
            slots = _slots(document // plan.every, plan)


def _slots(group: int, plan: SplitPlan) -> dict[int, str]:
    """The documents of a group of `plan.every` that go to a taken split, and to which."""
    digest = hashlib.sha256(f"held out of group {group}".encode()).digest()
    first = int.from_bytes(digest[:8], "little") % plan.every
    # The distance from the first to the second is never 0, so that they are two documents.
    distance = 1 + int.from_bytes(digest[8:16], "little") % (plan.every - 1)
    places = (first, (first + distance) % plan.every)
    return dict(zip(places, plan.taken, strict=False))


def _by_position(
    pieces: Iterator[Piece | EncodedPiece], plan: SplitPlan
) -> Iterator[tuple[str, Piece | EncodedPiece]]:
    splits = ["train", *plan.taken]
    starts = list(plan.starts)
    position = 0
    for piece in pieces:
        while starts and position + piece.chars > starts[0]:
            text = piece.text
            cut = _paragraph_start(text, max(starts[0] - position, 0))
            yield splits[0], Piece(text[:cut], True, piece.consumed)
            piece, position = Piece(text[cut:], piece.last, 0), position + cut
            del splits[0], starts[0]
        if piece.chars:
            yield splits[0], piece
            position += piece.chars


def _paragraph_start(text: str, start: int) -> int:
    """The first place at or after `start` that begins a paragraph, else a line, else a word."""
    for gap in ("\n\n", "\n", " "):
        place = text.find(gap, max(start - len(gap), 0), start + 4096)
        if place >= 0:
            return place + len(gap)
    return max(start, 1)
