"""A preparation: of which text, with which tokenizer, in which folder, and who may work on it now.

Of the processes that prepare one text in one cache folder, one holds the lock: it trains the
tokenizer, prepares the whole, or merges the parts. A process that makes a part holds that lock for
its start only, and from then on the lock of its part; who holds the first lock can wait until no
part is at work.
"""

import json
import shlex
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from gpt2.common.files import atomic_write, lock, remove_leftovers
from gpt2.data.documents import Source
from gpt2.data.manifest import MANIFEST
from gpt2.data.splits import SplitPlan, split_pieces
from gpt2.data.tokenise import Part
from gpt2.tokenizer import Tokenizer

_TRAINING_CHARS = 1 << 28  # text that a new tokenizer learns from, at most
_ORIGIN = "origin.json"  # beside a tokenizer trained here: of which text it is


@dataclass(frozen=True)
class Job:
    """What is to be prepared, with what, and where.

    Attributes:
        data: the source as the user named it.
        source: the same, opened.
        tokenizer: what `Tokenizer.load` takes; None is one trained on the source.
        vocab_size: size of that one.
        cache_dir: folder for everything written.
        progress: show progress bars.
    """

    data: str
    source: Source
    tokenizer: str | None
    vocab_size: int
    cache_dir: Path
    progress: bool

    @property
    def identity(self) -> str:
        return f"{self.source.name}-{self.source.fingerprint[:8]}"

    @property
    def own_tokenizer(self) -> Path:
        """Where a tokenizer trained on this source is kept."""
        return self.cache_dir / "tokenizers" / f"{self.identity}-{self.vocab_size}/tokenizer.json"

    def folder(self, tokenizer: Tokenizer) -> Path:
        return self.cache_dir / f"{self.identity}-{tokenizer.hash[:8]}"

    def command(self, *words: str) -> str:
        """The command line that prepares the same in the same place, with `words` at its end."""
        command = ["python", "-m", "gpt2.data.prepare", "--data", self.data]
        if self.tokenizer is not None:
            command += ["--tokenizer", self.tokenizer]
        else:
            command += ["--vocab-size", str(self.vocab_size)]
        return shlex.join([*command, "--cache-dir", str(self.cache_dir), *words])

    def load_tokenizer(self) -> Tokenizer | None:
        """The tokenizer, unless it is still to be trained.

        Raises:
            ValueError: it cannot be used, or was trained on another text.
        """
        if self.tokenizer is not None:
            return Tokenizer.load(self.tokenizer)
        if not self.own_tokenizer.exists():
            return None
        tokenizer = Tokenizer.load(self.own_tokenizer)
        origin = self.own_tokenizer.with_name(_ORIGIN)
        # Where there is none, an older version of this program trained it.
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
        """Held by who trains the tokenizer, prepares the whole, merges, or begins a part."""
        self.cache_dir.mkdir(parents=True, exist_ok=True)
        waiting = f"{self.data}: another process is preparing it; waiting for it to finish"
        return lock(self.cache_dir / f".{self.identity}.lock", waiting=waiting)

    @contextmanager
    def part_lock(self, folder: Path, part: Part) -> Iterator[None]:
        """Held by who makes a part; taken while `lock` is held.

        Raises:
            ValueError: another process is making this part.
        """
        path = self.cache_dir / f".{folder.name}.part-{part.number}-of-{part.of}.lock"
        with ExitStack() as held:
            try:
                held.enter_context(lock(path, patience=0))
            except TimeoutError as error:
                raise ValueError(
                    f"--shard {part}: another process is making this part of {folder}"
                ) from error
            yield

    @contextmanager
    def no_parts_at_work(self, folder: Path) -> Iterator[None]:
        """Wait for those who make a part of `folder`, and let none begin; `lock` is held."""
        with ExitStack() as held:
            for path in sorted(self.cache_dir.glob(f".{folder.name}.part-*.lock")):
                name = path.stem.removeprefix(f".{folder.name}.")
                waiting = f"{self.data}: another process is making {name}; waiting for it to finish"
                held.enter_context(lock(path, waiting=waiting))
            yield

    def train_tokenizer(self, plan: SplitPlan, notes: list[str]) -> Tokenizer:
        """Train a tokenizer on the training text and keep it; `lock` is held."""
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
        tokenizer = Tokenizer.train(texts(), self.vocab_size, progress=self.progress)
        self.own_tokenizer.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.own_tokenizer.parent)
        with atomic_write(self.own_tokenizer.with_name(_ORIGIN)) as file:
            file.write(self._origin(tokenizer))
        tokenizer.save(self.own_tokenizer)
        notes.append(
            f"tokenizer: {tokenizer.vocab_size:,} tokens, trained in "
            f"{time.perf_counter() - start:.1f} s on {characters / 1e6:,.1f} million characters of "
            f"the training text, kept as {self.own_tokenizer}"
        )
        return tokenizer
