"""Split text into pre-tokens and count them, in several processes when there is much of it.

Byte-pair encoding works inside pre-tokens: roughly words, each with the space before it, and runs
of digits, of punctuation, of white space. The pattern is GPT-2's (Radford et al. 2019, "Language
Models are Unsupervised Multitask Learners", section 2.2), with its characters listed in
unicode16.json: training and encoding, by different libraries, split alike.

The text is a stream of which each process holds one batch at a time. Arrays find the pre-tokens of
a batch two to four times as fast as a regular expression. A worker process runs this file as a
script, so it imports nothing of ours, and no torch.
"""

from __future__ import annotations

import json
import pickle
import re
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")

_TABLES = json.loads(Path(__file__).with_name("unicode16.json").read_text(encoding="ascii"))


def _ends(name: str) -> list[list[int]]:
    """The ranges of a table: [[65, 90], [170]] of "41-5A AA"."""
    parts = [part for line in _TABLES[name] for part in line.split()]
    return [[int(end, 16) for end in part.split("-")] for part in parts]


def _ranges(name: str) -> str:
    """The ranges of a character class: "A-Z\xaa" of a table with "41-5A AA"."""
    return "".join("-".join(map(chr, ends)) for ends in _ends(name))


_L, _N, _S = map(_ranges, "LNS")

# The published pattern with the characters of Unicode 16 in place of \p{L}, \p{N} and \s. White
# space at the end is matched apart, which changes nothing and needs no backtracking. tiktoken's
# library matches a group without look-around at one go.
SPLIT_PATTERN = (
    f"(?:'(?:[sdmt]|ll|ve|re)| ?[{_L}]+| ?[{_N}]+| ?[^{_S}{_L}{_N}]+)"
    f"|[{_S}]+$|[{_S}]+(?![^{_S}])|[{_S}]"
)
_border = re.compile(f"(?<=[^{_S}])[{_S}]|[{_S}](?=[^{_S}])")

# The kind of each character: _SPACE for \s, less for \p{L}, \p{N} and others; _GAP between texts.
_SPACE, _GAP = 3, 4
_KINDS = np.zeros(sys.maxunicode + 1, np.uint8)
for _kind, _name in enumerate("LNS", start=1):
    for _range in _ends(_name):
        _KINDS[_range[0] : _range[-1] + 1] = _kind

# After the apostrophe of a contraction: 's 'd 'm 't; and 'll 've 're, the first with the second.
_ONE_LETTER, _TWO_LETTERS = np.zeros(128, bool), np.full(128, sys.maxunicode + 1)
_ONE_LETTER[[*map(ord, "sdmt")]] = True
_TWO_LETTERS[[*map(ord, "lvr")]] = [*map(ord, "lee")]

_SLOT_BITS = 18
_FIRST_BYTES = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)  # masks of an integer
_ODD, _MIXED = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)

_BATCH_CHARS = 1 << 19  # of text, sent to a worker at a time
_ALONE_CHARS = 1 << 20  # counted before workers are started: starting them takes about as long


class Batch(NamedTuple):
    """Several texts as numbers of pre-tokens."""

    numbers: NDArray[np.uint32]
    ends: list[int]  # of each text in `numbers`


def count_pretokens(
    texts: Iterable[str], *, processes: int, keep: bool = False, progress: bool = False
) -> tuple[dict[str, int], list[Batch]]:
    """Count each distinct pre-token of a stream of texts (see train_bpe).

    Returns:
        The counts; and with `keep` the texts, as places in these. A text of more than half a
        million characters becomes several.
    """
    if isinstance(texts, str):
        raise ValueError("texts is one string: pass an iterable of documents, such as [text]")
    pieces = chain.from_iterable(cut(text, _BATCH_CHARS) for text in texts)
    batches = _show_progress(in_batches(pieces, _BATCH_CHARS), progress)
    names: list[Iterable[str]] = []
    counts: list[NDArray[np.int64]] = [np.zeros(0, np.int64) for _ in range(1 + processes)]
    kept = []
    for who, seen, ends in _number(batches, processes, names):
        total = np.bincount(seen, minlength=len(counts[who]))
        total[: len(counts[who])] += counts[who]
        counts[who] = total
        if keep:
            kept.append((who, seen, ends))
    words: dict[str, int] = {}
    for own_words, own_counts in zip(names, counts, strict=False):
        for word, count in zip(own_words, own_counts.tolist(), strict=True):
            words[word] = words.get(word, 0) + count
    number = {word: n for n, word in enumerate(words)}
    tables = [np.array([number[word] for word in own], np.uint32) for own in names]
    for who, seen, _ in kept:
        seen[:] = tables[who][seen]
    return words, [Batch(seen, ends) for _, seen, ends in kept]


def split(text: str) -> list[str]:
    """Split a text into its pre-tokens."""
    starts, stops = _find(text, np.zeros(0, np.int64))[1:]
    return [text[start:stop] for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]


def _find(
    text: str, gaps: NDArray[np.int64]
) -> tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.int64]]:
    """The code points of a text, and where its pre-tokens start and stop, as SPLIT_PATTERN has it.

    `gaps` are the places of characters that stand between texts and are in none.
    """
    # With two characters after the end, so that any two may be looked at.
    codes = np.frombuffer((text + "\0\0").encode("utf-32-le", "surrogatepass"), "<u4")
    kinds = _KINDS[codes]
    kinds[gaps] = kinds[-2:] = _GAP
    begins = np.ones(len(codes), bool)
    np.not_equal(kinds[1:], kinds[:-1], out=begins[1:])
    # White space before a word: its last character stands apart, and a space goes with the word.
    last = np.flatnonzero((kinds[:-1] == _SPACE) & (kinds[1:] < _SPACE))
    begins[last] = True
    begins[last[codes[last] == ord(" ")] + 1] = False
    apostrophes = np.flatnonzero(codes == ord("'"))
    apostrophes = apostrophes[begins[apostrophes]]
    first, second = codes[apostrophes + 1], codes[apostrophes + 2]
    one = _ONE_LETTER[np.minimum(first, 127)]
    two = (_TWO_LETTERS[np.minimum(first, 127)] == second) & ~one
    begins[apostrophes[one | two] + 1] = False
    begins[apostrophes[one] + 2] = begins[apostrophes[two] + 3] = True
    edges = np.flatnonzero(begins)
    inside = np.flatnonzero(kinds[edges] != _GAP)
    return codes[:-2], edges[inside], edges[inside + 1]


def cut(text: str, size: int) -> Iterator[str]:
    """Cut a text into parts of `size` characters or a little more, without cutting a pre-token.

    A pre-token begins at the first character of a run of white space, and at the last one if a
    word follows.
    """
    assert size > 0
    start = 0
    while len(text) - start > size:
        border = _border.search(text, start + size)
        if border is None:
            break
        yield text[start : border.start()]
        start = border.start()
    yield text[start:]


def check_unicode(text: str) -> None:
    """Raise a ValueError if a text has a lone surrogate, which UTF-8 cannot encode."""
    try:
        if not text.isascii():
            text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text has a lone surrogate, {text[error.start]!r} at character {error.start}, "
            "which is no character: decode its source with errors='strict' to find it, or "
            "errors='replace' to be rid of it"
        ) from error


def in_batches(
    items: Iterable[T],
    size: int,
    length: Callable[[T], int] = len,  # type: ignore[assignment]
) -> Iterator[list[T]]:
    """Group items into lists, in order, each of `size` in all or one item more."""
    batch: list[T] = []
    room = size
    for item in items:
        batch.append(item)
        room -= length(item)
        if room <= 0:
            yield batch
            batch, room = [], size
    if batch:
        yield batch


def _show_progress(batches: Iterable[list[str]], progress: bool) -> Iterator[list[str]]:
    from gpt2.common.progress import progress_bar  # here, not above: the workers do without

    with progress_bar(progress, desc="counting words", unit=" chars", unit_scale=True) as bar:
        for batch in batches:
            yield batch
            bar.update(sum(map(len, batch)))


class _Numbers(dict[str, int]):
    """Numbers for pre-tokens, from 0 in the order in which they are first looked up.

    Those of up to 15 characters below U+0100 have a key of two integers, their bytes and their
    length, by which an array of slots gives the numbers of a whole batch at once. The first word to
    come to a slot has it; all others are looked up one by one.
    """

    def __init__(self) -> None:
        self._keys = np.zeros((2, 1 << _SLOT_BITS), np.uint64)
        self._values = np.zeros(1 << _SLOT_BITS, np.uint32)

    def __missing__(self, word: str) -> int:
        self[word] = number = len(self)
        return number

    def of(self, batch: list[str]) -> tuple[NDArray[np.uint32], list[int]]:
        """The numbers of the pre-tokens of a batch of texts, and where each text ends."""
        text = "\0".join(batch)
        gaps = np.cumsum([len(own) + 1 for own in batch])[:-1] - 1
        codes, starts, stops = _find(text, gaps)
        lengths = stops - starts
        narrow = np.zeros(len(codes) + 16, np.uint8)
        narrow[: len(codes)] = codes & 0xFF
        eights = np.ndarray(len(codes) + 9, "<u8", narrow, strides=(1,))  # from each place on
        left = eights[starts] & _FIRST_BYTES[np.minimum(lengths, 8)]
        right = eights[starts + 8] & _FIRST_BYTES[np.clip(lengths - 8, 0, 7)]
        right |= lengths.astype(np.uint64) << np.uint64(56)
        slots = ((left ^ right * _ODD) * _MIXED >> np.uint64(64 - _SLOT_BITS)).astype(np.int64)

        has_key = lengths <= 15
        has_key[np.searchsorted(starts, np.flatnonzero(codes > 0xFF), side="right") - 1] = False
        own_left, own_right = self._keys[:, slots]
        known = has_key & (own_left == left) & (own_right == right)
        numbers = self._values[slots]
        others = np.flatnonzero(~known)
        places = zip(starts[others].tolist(), stops[others].tolist(), strict=True)
        numbers[others] = [self[text[start:stop]] for start, stop in places]
        new = others[has_key[others] & (own_right[others] == 0)]
        self._keys[:, slots[new]] = left[new], right[new]
        self._values[slots[new]] = numbers[new]
        return numbers, [*np.searchsorted(starts, gaps).tolist(), len(starts)]


def _number(
    batches: Iterator[list[str]], processes: int, names: list[Iterable[str]]
) -> Iterator[tuple[int, NDArray[np.uint32], list[int]]]:
    """Number the pre-tokens of batches, in order: by this process, 0, then by workers, 1, 2, ...

    Each process has numbers of its own; in the end `names` holds for each the words numbered.
    """
    own = _Numbers()
    names.append(own)
    counted = 0
    for batch in batches:
        yield 0, *own.of(batch)
        counted += sum(map(len, batch))
        if counted >= _ALONE_CHARS and processes > 1:
            break
    else:
        return
    workers = [_Worker() for _ in range(processes)]
    try:
        busy: deque[int] = deque()  # workers, in the order of their batches
        for batch in batches:  # all that is left of them
            if len(busy) < processes:
                who, found = len(busy), None
            else:
                who = busy.popleft()
                found = workers[who].receive()
            workers[who].send(batch)
            busy.append(who)
            if found:  # taken while the worker counts its next batch
                yield 1 + who, *found
        for who in busy:
            yield 1 + who, *workers[who].receive()
        for worker in workers:
            worker.send(None)
            names.append(worker.receive())
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """A process that numbers pre-tokens: reads batches of texts from stdin, then None; writes to
    stdout what `_Numbers.of` gives for each, then the words numbered.

    multiprocessing would either fork a process in which torch runs threads, which can hang, or
    import the user's main script, and torch with it, in each worker.
    """

    def __init__(self) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([sys.executable, __file__], stdin=pipe, stdout=pipe)

    def send(self, batch: list[str] | None) -> None:
        assert self._process.stdin is not None
        try:
            _send(batch, self._process.stdin)
        except BrokenPipeError as error:
            raise self._ended_early() from error

    def receive(self) -> Any:
        assert self._process.stdout is not None
        try:
            return pickle.load(self._process.stdout)
        except (EOFError, pickle.UnpicklingError) as error:
            raise self._ended_early() from error

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()  # wait for its end, close its pipes

    def _ended_early(self) -> RuntimeError:
        return RuntimeError(
            f"a process that counts words ended with exit code {self._process.wait()}, perhaps for "
            "want of memory: processes=1 does without"
        )


def _send(value: object, stream: IO[bytes]) -> None:
    pickle.dump(value, stream, pickle.HIGHEST_PROTOCOL)
    stream.flush()


def _work() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to handle
    numbers = _Numbers()
    with suppress(EOFError):  # the parent has ended
        while (batch := pickle.load(sys.stdin.buffer)) is not None:
            _send(numbers.of(batch), sys.stdout.buffer)
        _send(list(numbers), sys.stdout.buffer)


if __name__ == "__main__":
    _work()
