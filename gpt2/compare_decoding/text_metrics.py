"""Measures of generated text: diversity, repetition, and copying from the training text.

All of them work on words: runs of letters and digits, lower-cased, an apostrophe inside included
("don't" is one word); punctuation does not count. N-grams never reach from one text into another.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from gpt2.common.progress import progress_bar
from gpt2.data.shards import TokenStream
from gpt2.tokenizer import Tokenizer

Words = Sequence[str]

_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
_BLOCK_TOKENS = 1 << 19


def words(text: str) -> list[str]:
    """The words of a text, lower-cased."""
    return _WORD.findall(text.lower())


def ngrams(text: Words, n: int) -> list[tuple[str, ...]]:
    """All runs of n words, in order."""
    return [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]


def distinct(texts: Iterable[Words], n: int, *, budget: int | None = None) -> float:
    """Distinct-n: different n-grams over all n-grams of the texts together.

    It falls as there is more text, so compare it for the same number of n-grams.

    Args:
        texts: read one after another.
        n: words in an n-gram.
        budget: count the first so many n-grams only; None counts them all.

    Returns:
        A share in [0, 1]; nan when there are no n-grams.

    Source: Li et al. 2016, arXiv:1510.03055.
    """
    grams = [gram for text in texts for gram in ngrams(text, n)][:budget]
    return len(set(grams)) / len(grams) if grams else math.nan


def repetition(texts: Iterable[Words], n: int = 4) -> float:
    """Share of n-grams that stood earlier in the same text, averaged over texts (seq-rep-n).

    Texts of fewer than n words are left out; nan when none is left.

    Source: Welleck et al. 2020, arXiv:1908.04319, section 3.
    """
    shares = [1 - len(set(grams)) / len(grams) for text in texts if (grams := ngrams(text, n))]
    return float(np.mean(shares)) if shares else math.nan


def in_a_row(text: str) -> tuple[str, int]:
    """The phrase that stands most often in a row, as "the dog the dog the dog", and how often.

    Signs between white space are words too. ("", 0) for a text of white space.
    """
    found = [" ".join(words(word)) or word for word in text.lower().split()]
    best: tuple[str, int] = ("", 0)
    for size in range(1, len(found) + 1):
        if len(found) // size <= best[1]:
            break
        run = 0  # places in a row at which the word is that of one phrase before
        for place in range(size - 1, len(found)):
            run = run + 1 if place >= size and found[place] == found[place - size] else 0
            if run // size + 1 > best[1]:
                best = " ".join(found[place - size + 1 : place + 1]), run // size + 1
    return best


def self_bleu(texts: Sequence[Words], max_n: int = 4) -> float:
    """Self-BLEU: the mean BLEU of each text against all the others; higher is less diverse.

    BLEU is the geometric mean of the clipped n-gram precisions, n = 1 to max_n, times the brevity
    penalty against the nearest length (Papineni et al. 2002). It is 0 for a text that shares no
    word with the others; else an order without a match counts as 0.1 matches, of one n-gram where
    the text has none. So Texygen computes it, by NLTK's method 1 (Chen and Cherry 2014).

    Returns:
        A value in [0, 1]; nan when there are fewer than two texts.

    Source: Zhu et al. 2018, arXiv:1802.01886.
    """
    if len(texts) < 2:
        return math.nan
    log_precision = np.zeros(len(texts))
    shared = np.zeros(len(texts))  # words shared with other texts
    for n in range(1, max_n + 1):
        counts = [Counter(ngrams(text, n)) for text in texts]
        top: dict[tuple[str, ...], list[tuple[int, int]]] = {}  # two largest counts, and whose
        for i, own in enumerate(counts):
            for gram, count in own.items():
                top[gram] = sorted([*top.get(gram, []), (count, i)])[-2:]
        for i, own in enumerate(counts):
            matches = 0
            for gram, count in own.items():
                others = [largest for largest, j in top[gram] if j != i]
                matches += min(count, max(others, default=0))
            if n == 1:
                shared[i] = matches
            log_precision[i] += math.log(max(matches, 0.1) / max(own.total(), 1)) / max_n
    lengths = [len(text) for text in texts]
    bleu = [
        math.exp(log_precision[i] + _brevity(lengths, i)) if shared[i] else 0.0
        for i in range(len(texts))
    ]
    return float(np.mean(bleu))


def _brevity(lengths: Sequence[int], i: int) -> float:
    """Log of text i's brevity penalty; of two equally near lengths the shorter one counts."""
    others = (length for j, length in enumerate(lengths) if j != i)
    nearest = min(others, key=lambda length: (abs(length - lengths[i]), length))
    return min(0.0, 1 - nearest / lengths[i])


class CopySearch:
    """Looks for runs of n words of some texts in a training text of any length.

    Memory holds only the n-grams that are looked for; the training text is streamed. An end-of-text
    token in it breaks runs, as it is none of the words looked for.
    """

    def __init__(self, texts: Iterable[Words], n: int) -> None:
        self.n = n
        self._wanted = {gram for text in texts for gram in ngrams(text, n)}
        self._ids = {word: i for i, word in enumerate(sorted({w for g in self._wanted for w in g}))}
        keys = [_keys(np.array([self._ids[w] for w in gram]), n)[0] for gram in self._wanted]
        self._keys = np.unique(np.array(keys, dtype=np.uint64))
        self.found: set[tuple[str, ...]] = set()

    def read(self, stream: TokenStream, tokenizer: Tokenizer, max_tokens: int) -> int:
        """Search the first `max_tokens` tokens at most, and return how many there were."""
        total = min(len(stream), max_tokens)
        rest, before = b"", list[str]()
        with progress_bar(True, total=total, unit="tok", unit_scale=True, leave=False) as bar:
            for start in range(0, total, _BLOCK_TOKENS):
                stop = min(start + _BLOCK_TOKENS, total)
                text = rest + tokenizer.decode_bytes(stream.read(start, stop).tolist())
                # A word or a character may continue in the next block: keep what follows a space.
                cut = len(text) if stop == total else max(text.rfind(b" "), text.rfind(b"\n"), 0)
                text, rest = text[:cut], text[cut:]
                before = self._look(before + words(text.decode("utf-8", errors="replace")))
                bar.update(stop - start)
        return total

    def _look(self, text: list[str]) -> list[str]:
        """Note the n-grams found; return the last words, with which the next n-grams begin."""
        ids = np.array([self._ids.get(word, -1) for word in text], dtype=np.int64)
        if len(ids) >= self.n:
            keys = _keys(ids, self.n)
            for i in np.flatnonzero(np.isin(keys, self._keys)):
                gram = tuple(text[i : i + self.n])
                if gram in self._wanted:  # two n-grams may have the same key
                    self.found.add(gram)
        return text[len(text) - self.n + 1 :] if len(text) >= self.n else text

    def share(self, texts: Iterable[Words]) -> float:
        """Share of the n-grams of `texts` that were found; nan when there are none."""
        grams = [gram for text in texts for gram in ngrams(text, self.n)]
        return sum(gram in self.found for gram in grams) / len(grams) if grams else math.nan


def _keys(ids: NDArray[np.int64], n: int) -> NDArray[np.uint64]:
    """A number for each run of n ids: a polynomial in an odd base, modulo 2^64."""
    base = np.uint64(0x9E3779B97F4A7C15)
    values = ids.astype(np.uint64)
    keys = np.zeros(len(ids) - n + 1, dtype=np.uint64)
    for k in range(n):
        keys = keys * base + values[k : k + len(keys)]
    return keys
