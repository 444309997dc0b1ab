"""Split text into pre-tokens and count them, in several processes when there is much of it.

Byte-pair encoding works inside pre-tokens: roughly words, each with the space before it, and runs
of digits, of punctuation, of white space. The pattern is GPT-2's (Radford et al. 2019, "Language
Models are Unsupervised Multitask Learners", section 2.2), with its characters listed in
unicode16.json: training and encoding, by different libraries, split alike.

The text is a stream of which each process holds one batch at a time. A worker process runs this
file as a script, so it imports little: nothing of ours, no torch, no numpy.
"""

from __future__ import annotations

import json
import pickle
import re
import signal
import subprocess
import sys
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")

_TABLES = json.loads(Path(__file__).with_name("unicode16.json").read_text(encoding="ascii"))


def _ranges(name: str) -> str:
    """The ranges of a character class: "A-Z\xaa" of a table with "41-5A AA"."""
    ranges = [part.split("-") for line in _TABLES[name] for part in line.split()]
    return "".join("-".join(chr(int(end, 16)) for end in ends) for ends in ranges)


_L, _N, _S = map(_ranges, "LNS")

# The published pattern with the characters of Unicode 16 in place of \p{L}, \p{N} and \s. White
# space at the end is matched apart, which changes nothing and needs no backtracking. tiktoken's
# library matches a group without look-around at one go.
SPLIT_PATTERN = (
    f"(?:'(?:[sdmt]|ll|ve|re)| ?[{_L}]+| ?[{_N}]+| ?[^{_S}{_L}{_N}]+)"
    f"|[{_S}]+$|[{_S}]+(?![^{_S}])|[{_S}]"
)
_split_any = re.compile(SPLIT_PATTERN).findall
# `re` looks a character up in one step as far as U+FFFF, and range by range beyond.
_split_bmp = re.compile(re.sub("[\U00010000-\U0010ffff]-?", "", SPLIT_PATTERN)).findall
_border = re.compile(f"(?<=[^{_S}])[{_S}]|[{_S}](?=[^{_S}])")

_PART_CHARS = 1 << 9  # of text, split at a time: few parts have a character beyond U+FFFF
_BATCH_CHARS = 1 << 20  # of text, sent to a worker at a time
_ALONE_CHARS = 1 << 20  # counted before workers are started: starting them takes about as long


class Batch(NamedTuple):
    """Several texts as numbers of pre-tokens."""

    numbers: NDArray[np.uint32]
    ends: array[int]  # of each text in `numbers`


def count_pretokens(
    texts: Iterable[str], *, processes: int, keep: bool = False, progress: bool = False
) -> tuple[dict[str, int], list[Batch]]:
    """Count each distinct pre-token of a stream of texts (see train_bpe).

    Returns:
        The counts; and with `keep` the texts, as places in these. A text of more than a million
        characters becomes several.
    """
    import numpy as np  # here, not above: the workers do without

    if isinstance(texts, str):
        raise ValueError("texts is one string: pass an iterable of documents, such as [text]")
    pieces = chain.from_iterable(cut(text, _BATCH_CHARS) for text in texts)
    batches = _show_progress(in_batches(pieces, _BATCH_CHARS), progress)
    names: list[Iterable[str]] = []
    counts: list[NDArray[np.int64]] = [np.zeros(0, np.int64) for _ in range(1 + processes)]
    kept = []
    for who, numbers, ends in _number(batches, processes, names):
        seen = np.frombuffer(numbers, np.uint32)
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
    beyond = len(text.encode("utf-16-le", "surrogatepass")) > 2 * len(text)
    return _split_any(text) if beyond else _split_bmp(text)


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
    """Numbers for pre-tokens, from 0 in the order of their first appearance."""

    def __missing__(self, word: str) -> int:
        self[word] = number = len(self)
        return number

    def of(self, batch: list[str]) -> tuple[array[int], array[int]]:
        """The numbers of the pre-tokens of a batch of texts, and where each text ends."""
        numbers, ends = array("I"), array("Q")
        for text in batch:
            for part in cut(text, _PART_CHARS):
                numbers.extend(map(self.__getitem__, split(part)))
            ends.append(len(numbers))
        return numbers, ends


def _number(
    batches: Iterator[list[str]], processes: int, names: list[Iterable[str]]
) -> Iterator[tuple[int, array[int], array[int]]]:
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
