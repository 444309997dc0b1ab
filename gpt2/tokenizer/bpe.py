"""Byte-level byte-pair encoding: learn the merges of a vocabulary from text.

Starting from the 256 bytes, the most frequent pair of neighbouring symbols becomes a new symbol,
again and again, until the vocabulary is full (Sennrich et al. 2016, arXiv:1508.07909). The text is
first split into pre-tokens, and no merge crosses their borders (Radford et al. 2019, "Language
Models are Unsupervised Multitask Learners").

All distinct pre-tokens lie end to end in one array; every pair of symbols knows its count and the
sites where it occurs, so a merge costs time in proportion to the sites it changes and not to the
size of the text. A heap gives the most frequent pair; an entry whose count other merges have
lowered is corrected when it reaches the top.

Of equally frequent pairs the one with the smaller ids comes first. Symbols are numbered in order of
creation, after the bytes in BYTE_ORDER. So the merges are those of Hugging Face `tokenizers`.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush
from itertools import pairwise, repeat

import numpy as np
from numpy.typing import NDArray

from gpt2.common.cpu import available_cores
from gpt2.common.progress import progress_bar
from gpt2.tokenizer.pretokens import Batch, check_unicode, count_pretokens

END_OF_TEXT = "<|endoftext|>"

# GPT-2 numbers the bytes that print (in Latin-1) before all others; published vocabularies do too.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTE_ORDER = bytes(_PRINTABLE) + bytes(b for b in range(256) if b not in _PRINTABLE)

_ID_BITS = 32  # a pair (a, b) is the integer a << _ID_BITS | b: a dict key, ordered like (a, b)
_ID_MASK = (1 << _ID_BITS) - 1
_BORDER, _INSIDE = -1, -2  # mark the places between pre-tokens and inside symbols: see _lay_out


def train_bpe(
    texts: Iterable[str], vocab_size: int, *, processes: int | None = None, progress: bool = False
) -> list[tuple[bytes, bytes]]:
    """Learn the merges of a byte-level BPE vocabulary, the most frequent pair first.

    Args:
        texts: documents, read once, as a stream; no merge spans two of them. "<|endoftext|>" in a
            document is ordinary text.
        vocab_size: 256 bytes + <|endoftext|> + merges.
        processes: worker processes that count pre-tokens; the result does not depend on them.
            None: one per core, once there is enough text to be worth it.
        progress: show a progress bar on stderr.

    Returns:
        The merges as (left, right), vocab_size - 257 of them, or fewer when the text runs out of
        pairs.

    Raises:
        ValueError: vocab_size is too small, there is no text, or it is no valid Unicode.
    """
    return _train(texts, vocab_size, processes, progress, keep=False)[0]


def train_bpe_and_encode(
    texts: Iterable[str], vocab_size: int, *, processes: int | None = None, progress: bool = False
) -> tuple[list[tuple[bytes, bytes]], Iterator[NDArray[np.int64]]]:
    """Do as train_bpe does, and keep the texts, in four bytes a pre-token, to encode them too.

    Returns:
        The merges, and the symbols of each text in order, numbered as above. A text of more than
        half a million characters becomes several.
    """
    merges, layout, lengths, batches = _train(texts, vocab_size, processes, progress, keep=True)
    return merges, _encode(batches, *_symbols_of_words(np.array(layout), lengths))


def _train(
    texts: Iterable[str], vocab_size: int, processes: int | None, progress: bool, keep: bool
) -> tuple[list[tuple[bytes, bytes]], list[int], list[int], list[Batch]]:
    """The merges; all words laid out, and the lengths of the symbols; with `keep`, the texts."""
    n_merges = vocab_size - 257
    if n_merges < 0:
        raise ValueError(
            f"vocab_size={vocab_size} is too small: the 256 bytes and {END_OF_TEXT} need 257"
        )
    processes = available_cores() if processes is None else processes
    words, batches = count_pretokens(texts, processes=processes, keep=keep, progress=progress)
    if not words:
        raise ValueError("cannot train a tokenizer: there is no text in the corpus")
    return *_learn_merges(words, n_merges, progress), batches


def _symbols_of_words(
    layout: NDArray[np.int64], lengths: list[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The symbols of all words with a border after each, and where each word begins in them."""
    places = np.array([*lengths, 0, 1])[layout]  # the last two: of _INSIDE and of _BORDER
    long = places > 1
    first = long & (np.cumsum(long) % 2 == 1)  # every second one is the last place of its symbol
    symbols = layout[(places == 1) | first]
    return symbols, np.flatnonzero(symbols == _BORDER) + 1


def _encode(
    batches: list[Batch], symbols: NDArray[np.int64], starts: NDArray[np.int64]
) -> Iterator[NDArray[np.int64]]:
    lengths = np.diff(starts) - 1
    batches.reverse()
    while batches:  # each is dropped when it is done
        words, ends = batches.pop()
        stops = np.concatenate([[0], np.cumsum(lengths[words])])
        offsets = np.repeat(starts[words] - stops[:-1], lengths[words])
        ids = symbols[offsets + np.arange(len(offsets))]
        start = 0
        for end in ends:
            yield ids[start : (start := stops[end])]


def _learn_merges(
    words: dict[str, int], n_merges: int, progress: bool
) -> tuple[list[tuple[bytes, bytes]], list[int], list[int]]:
    """The merges; the words as they lie then (see _lay_out), and the lengths of the symbols."""
    symbols = [bytes([byte]) for byte in BYTE_ORDER]
    lengths = [1] * 256
    ids, weights = _lay_out(words)
    counts: defaultdict[int, int] = defaultdict(int)
    sites: defaultdict[int, array[int]] = defaultdict(_new_sites)
    for site, (left, right) in enumerate(pairwise(ids)):
        if left != _BORDER and right != _BORDER:
            pair = left << _ID_BITS | right
            counts[pair] += weights[site]
            sites[pair].append(site)
    heap = [(-count, pair) for pair, count in counts.items()]
    heapify(heap)

    merges: list[tuple[bytes, bytes]] = []
    with progress_bar(progress, desc="merging pairs", total=n_merges) as bar:
        while heap and len(merges) < n_merges:
            negative_count, pair = heappop(heap)
            count = counts[pair]
            if count != -negative_count:  # other merges have taken some of its sites since
                if count:
                    heappush(heap, (-count, pair))
                else:
                    del counts[pair], sites[pair]
                continue
            left, right = pair >> _ID_BITS, pair & _ID_MASK
            merges.append((symbols[left], symbols[right]))
            symbols.append(symbols[left] + symbols[right])
            lengths.append(lengths[left] + lengths[right])
            new = len(symbols) - 1
            fresh = _merge(left, right, new, sites[pair], ids, weights, lengths, counts)
            del counts[pair], sites[pair]
            for pair, pair_sites in fresh.items():
                if count := counts[pair]:
                    heappush(heap, (-count, pair))
                    sites[pair] = pair_sites
                else:  # created and taken by this one merge
                    del counts[pair]
            bar.update()
    return merges, ids, lengths


def _lay_out(words: dict[str, int]) -> tuple[list[int], list[int]]:
    """All words end to end as symbol ids, and at each place the count of its word.

    A symbol of n bytes takes n places. Its id stands in the first and the last of them, so that the
    neighbours on both sides find it, and _INSIDE between them.
    """
    to_ids = bytes.maketrans(BYTE_ORDER, bytes(range(256)))
    ids, weights = [_BORDER], [0]
    for word, count in words.items():
        check_unicode(word)
        word_ids = word.encode().translate(to_ids)
        ids.extend(word_ids)
        ids.append(_BORDER)
        weights.extend(repeat(count, len(word_ids) + 1))
    return ids, weights


def _merge(
    left: int,
    right: int,
    new: int,
    sites: array[int],
    ids: list[int],
    weights: list[int],
    lengths: list[int],
    counts: defaultdict[int, int],
) -> dict[int, array[int]]:
    """Replace every (left, right) by `new`, update the counts, and return the new pairs' sites.

    Sites are in ascending order, given and returned, so that of "aaa" the first two letters merge.
    """
    befores: defaultdict[int, array[int]] = defaultdict(_new_sites)
    afters: defaultdict[int, array[int]] = defaultdict(_new_sites)
    left_length, new_length = lengths[left], lengths[new]
    for site in sites:
        middle = site + left_length
        if ids[site] != left or ids[middle] != right:
            continue  # taken by an earlier merge
        end = site + new_length
        before, after = ids[site - 1], ids[end]
        if before != _BORDER:
            befores[before].append(site - lengths[before])
        if after != _BORDER:
            afters[after].append(site)
        ids[middle - 1] = ids[middle] = _INSIDE
        ids[site] = ids[end - 1] = new
    changes = [(b << _ID_BITS | left, b << _ID_BITS | new, found) for b, found in befores.items()]
    changes += [(right << _ID_BITS | a, new << _ID_BITS | a, found) for a, found in afters.items()]
    for old_pair, new_pair, found in changes:
        weight = sum([weights[site] for site in found])
        counts[old_pair] -= weight
        counts[new_pair] += weight
    return {new_pair: found for _, new_pair, found in changes}


def _new_sites() -> array[int]:
    return array("Q")
