"""A preparation: its text, tokenizer and folder, and the lock of the processes at work on it."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpt2.common.files import atomic_write, lock, remove_leftovers
from gpt2.config import TokenType
from gpt2.data.documents import Source
from gpt2.data.manifest import MANIFEST
from gpt2.data.sources import open_source
from gpt2.data.splits import SplitPlan, plan_splits, split_pieces
from gpt2.tokenizer import Tokenizer

# Bytes of text in a shard: some 30 million tokens, held in memory until it is written.
SHARD_BYTES = 1 << 27
# Text that a new tokenizer learns from, at most. Till it is encoded it is in memory, as numbers of
# words: about a byte a character.
_TRAINING_CHARS = 1 << 28
_ORIGIN = "origin.json"  # beside a tokenizer trained here: names its text


@dataclass
class Job:
    """A preparation: its options, its source, and its lock.

    Raises:
        ValueError: `data` names nothing that can be read.
    """

    data: str  # a built-in name (`gpt2.data.sources.BUILT_IN`), a file, a folder or a pattern
    tokenizer: str | None = None  # as `Tokenizer.load` takes; None trains one on the training text
    vocab_size: int = 32000  # of a tokenizer trained here
    cache_dir: Path = Path("data")  # folder for everything written
    progress: bool = True  # show progress bars
    shard_bytes: int = SHARD_BYTES  # of text, after which a shard ends
    token_type: TokenType | None = None  # of the ids in token files that do not say it
    source: Source = field(init=False)  # the opened text
    notes: list[str] = field(init=False)  # lines worth printing, collected on the way
    # The ids of the first pieces of the training text, if the tokenizer was trained just now.
    encoded: Iterator[NDArray[np.integer]] = field(init=False, default_factory=lambda: iter(()))

    def __post_init__(self) -> None:
        self.source = open_source(self.data, cache_dir=self.cache_dir)
        self.notes = list(self.source.notes)
        if self.token_type and not self.source.token_files:
            raise ValueError(
                f"--token-type {self.token_type} is the type of token ids, and {self.data} is "
                "text: leave it out"
            )

    @property
    def identity(self) -> str:
        identity = f"{self.source.name}-{self.source.fingerprint[:8]}"
        return f"{identity}-{self.token_type}" if self.token_type else identity

    @property
    def own_tokenizer(self) -> Path:
        """The file of a tokenizer trained on this source."""
        return self.cache_dir / "tokenizers" / f"{self.identity}-{self.vocab_size}/tokenizer.json"

    def folder(self, tokenizer: Tokenizer) -> Path:
        return self.cache_dir / f"{self.identity}-{tokenizer.hash[:8]}"

    @cached_property
    def _given_tokenizer(self) -> Tokenizer | None:
        if self.tokenizer is None and self.source.token_files:
            return Tokenizer.load(self._tokenizer_of_tokens())
        return None if self.tokenizer is None else Tokenizer.load(self.tokenizer)

    def _tokenizer_of_tokens(self) -> Path:
        """The tokenizer.json beside token files, which is taken for theirs."""
        paths = chain(*self.source.token_files.values())
        beside = Path(os.path.commonpath([path.parent for path in paths])) / "tokenizer.json"
        if not beside.is_file():
            raise ValueError(
                f"--data {self.data} holds token ids, which mean nothing without the tokenizer "
                "that made them: give it by --tokenizer, gpt2 for GPT-2's or a tokenizer.json; or "
                f"put that file there, as {beside}"
            )
        self.notes.append(f"tokenizer: {beside}, which lies beside the token ids")
        return beside

    def load_tokenizer(self) -> Tokenizer | None:
        """Load the tokenizer, None if it is still to be trained; a ValueError if it cannot be used
        or was trained on another text."""
        if self._given_tokenizer or not self.own_tokenizer.exists():
            return self._given_tokenizer
        tokenizer = Tokenizer.load(self.own_tokenizer)
        origin = self.own_tokenizer.with_name(_ORIGIN)
        # Tokenizers of older versions of this program have none.
        if origin.exists() and origin.read_bytes() != self._origin(tokenizer):
            raise ValueError(
                f"{self.own_tokenizer} is not the tokenizer that was trained on "
                f"{self.source.name}, by {origin}. Delete the folder {origin.parent} and run "
                "again: it is trained anew. Or choose one by --tokenizer"
            )
        return tokenizer

    def _origin(self, tokenizer: Tokenizer) -> bytes:
        origin = {"source": self.source.fingerprint, "tokenizer": tokenizer.hash}
        return (json.dumps(origin) + "\n").encode()

    def find(self) -> tuple[Tokenizer, Path] | None:
        """The tokenizer and the finished folder of an earlier run, if there is one."""
        tokenizer = self.load_tokenizer()
        if tokenizer is None:
            return None
        folder = self.folder(tokenizer)
        return (tokenizer, folder) if (folder / MANIFEST).exists() else None

    def lock(self) -> AbstractContextManager[None]:
        """Lock held while training the tokenizer and preparing everything."""
        self.cache_dir.mkdir(parents=True, exist_ok=True)
        waiting = f"{self.data}: another process is preparing it; waiting for it to finish"
        return lock(self.cache_dir / f".{self.identity}.lock", waiting=waiting)

    def begin(self) -> tuple[SplitPlan, Tokenizer, Path]:
        """Plan the splits, load or train the tokenizer, make the folder; called under `lock`."""
        plan = plan_splits(self.source)
        if plan.note:
            self.notes.append(plan.note)
        tokenizer = self.load_tokenizer() or self._train_tokenizer(plan)
        folder = self.folder(tokenizer)
        folder.mkdir(exist_ok=True)
        return plan, tokenizer, folder

    def _train_tokenizer(self, plan: SplitPlan) -> Tokenizer:
        """Train a tokenizer on the training text and keep it."""
        if "train" not in self.source.splits:
            raise ValueError(
                f"{self.source.name} has no training text (its files are named for "
                f"{' and '.join(self.source.splits)}), so no tokenizer can be trained on it. "
                "Name one: --tokenizer path/to/tokenizer.json"
            )
        characters = 0

        def texts() -> Iterator[str]:
            nonlocal characters
            for split, piece in split_pieces(self.source, plan, only="train"):
                if split == "train":
                    characters += len(piece.text)
                    yield piece.text
                if characters >= _TRAINING_CHARS:
                    return

        start = time.perf_counter()
        tokenizer, self.encoded = Tokenizer.train_and_encode(
            texts(), self.vocab_size, progress=self.progress
        )
        self.own_tokenizer.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.own_tokenizer.parent)
        with atomic_write(self.own_tokenizer.with_name(_ORIGIN)) as file:
            file.write(self._origin(tokenizer))
        tokenizer.save(self.own_tokenizer)
        learned = f"{tokenizer.vocab_size:,} tokens"
        if tokenizer.vocab_size < self.vocab_size:
            learned += (
                f" instead of the {self.vocab_size:,} asked for, as every word of the text is then "
                "one token and there is nothing left to merge"
            )
        self.notes.append(
            f"tokenizer: {learned}; trained in "
            f"{time.perf_counter() - start:.1f} s on {characters / 1e6:,.1f} million characters of "
            f"the training text, kept as {self.own_tokenizer}"
        )
        return tokenizer
