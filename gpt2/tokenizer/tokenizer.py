"""Text to token ids and back: byte-level BPE with GPT-2's split (Radford et al. 2019).

    tokenizer = Tokenizer.train(texts, vocab_size=32_000)   # or Tokenizer.load(path)
    ids = tokenizer.encode("Once upon a time")
    tokenizer.decode(ids)

Any text can be encoded, and its exact bytes come back, as the 256 bytes are tokens. Our trainer
(gpt2.tokenizer.bpe) learns the merges; tiktoken applies them. What is a letter, a number or white
space is Unicode 16 for both, whatever their versions (gpt2.tokenizer.pretokens).

A trained tokenizer has the ids of Hugging Face's trainer: 0 for <|endoftext|>, 1 to 256 for the
bytes (printable ones first), then the merges in order. A loaded one has the ids of its file: in
GPT-2's own the bytes are 0 to 255 and <|endoftext|> is 50256.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import operator
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import chain

import numpy as np
import tiktoken

from gpt2.common.cpu import available_cores
from gpt2.tokenizer.bpe import BYTE_ORDER, END_OF_TEXT, train_bpe, train_bpe_and_encode
from gpt2.tokenizer.pretokens import SPLIT_PATTERN, check_unicode, cut, in_batches
from gpt2.tokenizer.vocabulary import Vocabulary, read_vocabulary, write_tokenizer_json

__all__ = ["END_OF_TEXT", "Tokenizer", "train_bpe"]

# Long documents are encoded in parts and short ones together, so that all cores have work at little
# cost for each. Cutting also separates a very long run of white space from the word after it, which
# spares tiktoken's splitter a long search.
_PART_CHARS = 1 << 16


class Tokenizer:
    """A byte-level BPE vocabulary with an encoder and a decoder.

    Attributes:
        vocab_size: number of tokens, special ones included; ids are 0 to vocab_size - 1.
        eot_id: the id of <|endoftext|>.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._encoding = tiktoken.Encoding(
            "bpe",
            pat_str=SPLIT_PATTERN,
            mergeable_ranks=vocabulary.ids,
            special_tokens=vocabulary.special_tokens,
        )
        self.vocab_size = len({*vocabulary.ids.values(), *vocabulary.special_tokens.values()})
        self.eot_id = vocabulary.special_tokens[END_OF_TEXT]
        self._own_special = {
            token: id for token, id in vocabulary.special_tokens.items() if token != END_OF_TEXT
        }

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int = 32_000,
        *,
        processes: int | None = None,
        progress: bool = False,
    ) -> Tokenizer:
        """Learn a vocabulary from documents, which are read once, as a stream (see train_bpe).

        Where the text has too few pairs the vocabulary is smaller than vocab_size.
        """
        return cls._of_merges(train_bpe(texts, vocab_size, processes=processes, progress=progress))

    @classmethod
    def train_and_encode(
        cls, texts: Iterable[str], vocab_size: int = 32_000, *, progress: bool = False
    ) -> tuple[Tokenizer, Iterator[np.ndarray]]:
        """Do as `train` does, and give the ids of each text too, in order, as `encode` does; for
        texts of at most half a million characters. It takes the time of `train` and four bytes a
        word.
        """
        merges, encoded = train_bpe_and_encode(texts, vocab_size, progress=progress)
        return cls._of_merges(merges), (symbols + 1 for symbols in encoded)

    @classmethod
    def _of_merges(cls, merges: list[tuple[bytes, bytes]]) -> Tokenizer:
        tokens = [bytes([byte]) for byte in BYTE_ORDER] + [left + right for left, right in merges]
        ids = {token: id for id, token in enumerate(tokens, start=1)}
        return cls(Vocabulary(ids, merges, {END_OF_TEXT: 0}))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Load a tokenizer.json, or GPT-2's encoder.json and vocab.bpe, or a folder with either;
        "gpt2", where no folder of that name has one, fetches GPT-2's own.

        Raises:
            ValueError: the file is missing, damaged, or of another kind of tokenizer.
        """
        return cls(read_vocabulary(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a tokenizer.json of GPT-2's form, atomically.

        Hugging Face `tokenizers` gives the same ids with it, but always reads "<|endoftext|>" in a
        text as the special token. It splits by its own tables of characters: Unicode 16, as here,
        since version 0.22.
        """
        write_tokenizer_json(path, self._vocabulary)

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of everything that determines ids: vocabulary, merges, special tokens."""
        ids, merges, special_tokens = self._vocabulary
        content = {
            "ids": sorted((id, token.hex()) for token, id in ids.items()),
            "merges": [(left.hex(), right.hex()) for left, right in merges],
            "special": sorted((id, token) for token, id in special_tokens.items()),
        }
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Token ids of a text.

        Special tokens that a vocabulary has besides "<|endoftext|>", such as "<|user|>", are always
        encoded as such, as Hugging Face `tokenizers` does: only their own texts have them.

        Args:
            text: any valid Unicode.
            allow_special: encode "<|endoftext|>" in the text as the special token too. By default,
                as befits a document of unknown origin, it is 13 ordinary characters.

        Raises:
            ValueError: the text has a lone surrogate.
        """
        check_unicode(text)
        special = self._vocabulary.special_tokens if allow_special else self._own_special
        return _join(self._encode_parts(_parts(text, special))).tolist()

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a text to continue, all special tokens allowed; an empty one begins a new
        document, as "<|endoftext|>" does. At least one id."""
        return self.encode(text, allow_special=True) or [self.eot_id]

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encode many texts on all cores, as `encode` does: the ids of each, uint32."""
        for text in texts:
            check_unicode(text)
        parts = [list(_parts(text, self._own_special)) for text in texts]
        batches = in_batches(chain.from_iterable(parts), _PART_CHARS, _length)
        with ThreadPoolExecutor(available_cores()) as pool:
            encoded = chain.from_iterable(pool.map(self._encode_parts, batches))
            return [_join([next(encoded) for _ in own_parts]) for own_parts in parts]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Decode token ids to their exact bytes; a ValueError if one is not in the vocabulary."""
        ids = [operator.index(id) for id in ids]
        for position, id in enumerate(ids):
            if not 0 <= id < self.vocab_size:
                raise ValueError(
                    f"id {id} (number {position} of {len(ids)}) is not in the vocabulary: its ids "
                    f"are 0 to {self.vocab_size - 1}. Was another tokenizer used to encode?"
                )
        return self._encoding.decode_bytes(ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Decode token ids to text; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Decode tokens as they arrive, yielding the characters that each completes."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for id in ids:
            if text := decoder.decode(self.decode_bytes([id])):
                yield text
        if text := decoder.decode(b"", final=True):
            yield text

    def _encode_parts(self, parts: Iterable[str | int]) -> list[np.ndarray]:
        return [
            np.array([part], dtype=np.uint32)
            if isinstance(part, int)
            else self._encoding.encode_to_numpy(part, disallowed_special=())
            for part in parts
        ]


def _parts(text: str, special: Mapping[str, int]) -> Iterator[str | int]:
    """Cut a text into parts to be encoded one by one, at least one, and the ids of special tokens
    between them; of tokens that begin alike the longest counts."""
    if not special:
        yield from cut(text, _PART_CHARS)
        return
    names = "|".join(map(re.escape, sorted(special, key=len, reverse=True)))
    for piece in re.split(f"({names})", text):
        if piece in special:
            yield special[piece]
        else:
            yield from cut(piece, _PART_CHARS)


def _length(part: str | int) -> int:
    return 1 if isinstance(part, int) else len(part)


def _join(arrays: list[np.ndarray]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
