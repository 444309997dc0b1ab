"""Perplexity per word, the figure of the literature on WikiText and the Penn Treebank.

    word-level perplexity = exp(nll / words)

nll is the sum of -log p over the tokens of the model's own tokenizer. Words are counted in the text
as distributed: those between spaces, and one <eos> for each line (245,569 in WikiText-2's test
set). So models with different tokenizers can be compared, and a detokenised text (Radford et al.
2019, section 3.1) is divided by the words of the original.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gpt2.data.documents import Source
from gpt2.data.splits import plan_splits, split_pieces
from gpt2.evaluate.perplexity import evaluate, to_perplexity
from gpt2.model import GPT
from gpt2.tokenizer import Tokenizer

Rules = Literal["none", "wikitext", "ptb", "lm1b"]

_NUMBER_ESCAPES = re.compile(r" @([-,.])@ ")
_CLOSING = re.compile(r" +(?=[,.;:!?%)\]}](?:\s|[.,;:!?)\]}\"']|$)|\.\.\.(?:\s|$))")
_OPENING = re.compile(r"(?<=[(\[{]) +|(?<=(?<!\S)[$#\u00a3]) (?=\d)")  # u00a3: pound sign
_QUOTED = re.compile(r'(?<!\S)" ([^"\n]*?) "(?=[\s,.;:!?)\]}]|$)')
_SINGLE_QUOTED = re.compile(r"(?<!\S)' ((?:(?! ')[^\n])*?) '(?=[\s,.;:!?)\]}]|$)")
_CONTRACTION = re.compile(r" (?='(?:s|t|re|ve|ll|d|m|S|T|RE|VE|LL|D|M)(?!\w))| (?=n't(?!\w))")
_PLURAL_POSSESSIVE = re.compile(r"(?<=s) '(?=\s)")
_LINE_SPACES = re.compile(r"^ +| +$", flags=re.MULTILINE)


def wikitext(text: str) -> str:
    """Detokenise WikiText (Moses' tokens, `@-@` inside words and numbers, spaces around lines).

    Headings keep their form, ` = = Career = = ` becoming `== Career ==`.
    """
    text = _NUMBER_ESCAPES.sub(r"\1", text)
    text = re.sub(r"(?<==) (?==)", "", text)
    text = text.replace(" \u00b0 ", "\u00b0 ")  # degree sign
    return _LINE_SPACES.sub("", _join(text))


def ptb(text: str) -> str:
    """Detokenise the Penn Treebank of Mikolov: lower case, no punctuation, `N` for numbers.

    `N` and `<unk>` stay, as nothing says what they stood for.
    """
    return _LINE_SPACES.sub("", _join(re.sub(r"(?<=[$#]) (?=N)", "", text)))


def lm1b(text: str) -> str:
    """Detokenise the One Billion Word benchmark (Moses' tokens, ASCII quotation marks)."""
    return _LINE_SPACES.sub("", _join(text))


DETOKENISERS: Mapping[Rules, Callable[[str], str]] = {
    "none": lambda text: text,
    "wikitext": wikitext,
    "ptb": ptb,
    "lm1b": lm1b,
}


def _join(text: str) -> str:
    """Undo what the tokenisers share: quotation marks, brackets, punctuation, contractions."""
    text = _QUOTED.sub(r'"\1"', text)
    text = _PLURAL_POSSESSIVE.sub("'", text)
    text = _CONTRACTION.sub("", text)
    text = _SINGLE_QUOTED.sub(r"'\1'", text)
    text = _OPENING.sub("", text)
    return _CLOSING.sub("", text)


@dataclass(frozen=True)
class WordPerplexity:
    """Perplexity per word; `nll` in nats, `words` and `bytes` of the text as distributed."""

    word_perplexity: float
    bits_per_byte: float
    nll: float
    words: int
    bytes: int
    tokens: int
    protocol: str

    def __str__(self) -> str:
        return (
            f"word-level perplexity {self.word_perplexity:.2f}, {self.bits_per_byte:.4f} bits per "
            f"byte ({self.words:,} words, {self.bytes:,} bytes, {self.tokens:,} tokens)"
        )


class _TokensInMemory:
    """Token ids in memory as `Tokens`, with the size of their text in bytes."""

    def __init__(self, ids: NDArray[np.int64], n_bytes: int) -> None:
        self.ids, self.n_bytes = ids, n_bytes

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        return self.ids[start:stop]


def word_perplexity(
    model: GPT,
    tokenizer: Tokenizer,
    documents: Sequence[str],
    *,
    rules: Rules = "none",
    stride: int | None = None,
    batch_size: int,
    progress: bool = False,
) -> WordPerplexity:
    """Measure the perplexity per word of a tokenised corpus.

    Args:
        documents: the text as distributed, cut into documents; joined they are all of it.
        rules: how to turn it into plain text before the model reads it.
        stride, batch_size, progress: as in `evaluate`.

    Raises:
        ValueError: there are no words, or the stride does not fit.
    """
    words = sum(len(text.split()) + text.count("\n") for text in documents)
    if not words:
        raise ValueError("there is nothing to evaluate: the text has no words")
    end = np.array([tokenizer.eot_id])
    encoded = tokenizer.encode_documents([DETOKENISERS[rules](text) for text in documents])
    ids = np.concatenate([part for document in encoded for part in (document, end)])
    stream = _TokensInMemory(
        ids.astype(np.int64), sum(len(text.encode("utf-8")) for text in documents)
    )
    result = evaluate(
        model,
        stream,
        bos_id=tokenizer.eot_id,
        batch_size=batch_size,
        stride=stride,
        progress=progress,
    )
    nll = result.loss * result.tokens
    return WordPerplexity(
        word_perplexity=to_perplexity(nll / words),
        bits_per_byte=nll / math.log(2) / stream.n_bytes,
        nll=nll,
        words=words,
        bytes=stream.n_bytes,
        tokens=result.tokens,
        protocol=(
            f"exp(nll / words); words are those between spaces in the original text and one <eos> "
            f"a line; bytes are the original's; the model reads it "
            f"{'as it is' if rules == 'none' else f'detokenised (rules: {rules})'}, in "
            f"{len(documents):,} documents, each with <|endoftext|> before it and, counted, after "
            f"it; context {result.context}, stride {result.stride}"
        ),
    )


def read_documents(source: Source, split: str) -> list[str]:
    """Read the documents of one split of a data set.

    Raises:
        ValueError: there is no such split in it, or it holds token ids.
    """
    if source.token_files:
        raise ValueError(f"{source.name} holds token ids, and words are counted in text: give that")
    plan = plan_splits(source)
    if split not in (have := [*source.splits, *plan.taken]):
        raise ValueError(f"{source.name} has no split {split!r}; it has {', '.join(have)}")
    documents: list[str] = []
    parts: list[str] = []
    only = split if split in source.splits else "train"
    for name, piece in split_pieces(source, plan, only=only):
        if name == split:
            parts.append(piece.text)
            if piece.last:
                documents.append("".join(parts))
                parts = []
    return documents
