"""From text to training data: find the source, train or load the tokenizer, tokenise once, reuse.

    python -m gpt2.data.prepare --data my.txt --vocab-size 8000

A prepared folder lies in the cache folder under a name made of the source, its fingerprint and the
tokenizer's, and holds numbered shards, tokenizer.json and, written last, manifest.json. Without the
manifest the folder is work in progress: its whole shards are kept and the rest is made again.
Source and tokenizer fix every byte of it, so work that is interrupted, or done twice, comes out the
same.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gpt2.data.documents import Source
from gpt2.data.manifest import MANIFEST, open_splits, write_manifest
from gpt2.data.shards import TokenStream
from gpt2.data.sources import open_source
from gpt2.data.splits import SplitPlan, plan_splits, split_pieces
from gpt2.data.tokenise import write_splits
from gpt2.files import lock, remove_leftovers
from gpt2.tokenizer import Tokenizer

SHARD_TOKENS = 1 << 25  # 64 MiB of uint16: what is held in memory, and what a kill can cost
_TRAINING_CHARS = 1 << 28  # text that a new tokenizer learns from, at most
_SAMPLE_CHARS = 1 << 20  # text on which the tokenizer compares its engines


@dataclass(frozen=True)
class Prepared:
    """Tokenised data, ready to train on.

    Attributes:
        tokenizer: the tokenizer whose ids the splits hold.
        splits: "train", "valid", "test"; no "train" where all files are named for the others.
        folder: where the data lies.
        name: the source's short name.
        notes: lines worth printing.
    """

    tokenizer: Tokenizer
    splits: dict[str, TokenStream]
    folder: Path
    name: str
    notes: tuple[str, ...]


def prepare(
    data: str,
    *,
    tokenizer: str | None = None,
    vocab_size: int = 32000,
    cache_dir: Path = Path("data"),
    progress: bool = True,
    verify: bool | None = None,
    shard_tokens: int = SHARD_TOKENS,
) -> Prepared:
    """Prepare a data set, or open what was prepared before from the same text and tokenizer.

    Args:
        data: a built-in name (`gpt2.data.sources.BUILT_IN`), a file, a folder or a pattern.
        tokenizer: what `Tokenizer.load` takes; None trains one on the training text.
        vocab_size: size of a tokenizer trained here.
        cache_dir: folder for everything written.
        progress: show progress bars.
        verify: check the SHA-256 of every shard; None does so up to 1 GiB. Headers and lengths
            are checked always.
        shard_tokens: tokens after which a shard ends.

    Raises:
        ValueError: the text cannot be read, or is too short to have all three splits; or, as
            `ShardError`, prepared data is damaged. Each says where and what to do.
    """
    source = open_source(data, cache_dir=cache_dir)
    job = _Job(source, tokenizer, vocab_size, cache_dir, progress, shard_tokens)
    notes = list(source.notes)
    found = job.find()
    if found is None:
        cache_dir.mkdir(parents=True, exist_ok=True)
        waiting = f"{data}: another process is preparing it; waiting for it to finish"
        with lock(cache_dir / f".{job.identity}.lock", waiting=waiting):
            found = job.find() or job.build(notes)  # that process may have made just this
    else:
        notes.append(f"reused {found[1]}")
    chosen, folder = found
    splits = open_splits(folder, chosen, verify=verify)
    for split, stream in splits.items():
        notes.append(
            f"{split}: {len(stream):,} tokens, {stream.n_documents:,} documents, "
            f"{stream.n_bytes / len(stream):.2f} bytes/token"
        )
    return Prepared(chosen, splits, folder, source.name, tuple(notes))


@dataclass(frozen=True)
class _Job:
    """What is to be prepared, with what, and where; the fields are the arguments of `prepare`."""

    source: Source
    tokenizer: str | None
    vocab_size: int
    cache_dir: Path
    progress: bool
    shard_tokens: int

    @property
    def identity(self) -> str:
        return f"{self.source.name}-{self.source.fingerprint[:8]}"

    @property
    def own_tokenizer(self) -> Path:
        """Where a tokenizer trained on this source is kept."""
        return self.cache_dir / "tokenizers" / f"{self.identity}-{self.vocab_size}/tokenizer.json"

    def folder(self, tokenizer: Tokenizer) -> Path:
        return self.cache_dir / f"{self.identity}-{tokenizer.hash[:8]}"

    def find(self) -> tuple[Tokenizer, Path] | None:
        """The tokenizer and the finished folder of an earlier run, if there is one."""
        if self.tokenizer is None and not self.own_tokenizer.exists():
            return None
        tokenizer = Tokenizer.load(self.tokenizer or self.own_tokenizer)
        folder = self.folder(tokenizer)
        return (tokenizer, folder) if (folder / MANIFEST).exists() else None

    def build(self, notes: list[str]) -> tuple[Tokenizer, Path]:
        """Do the work, or the rest of it; the manifest comes last. The caller holds the lock."""
        plan = plan_splits(self.source)
        if plan.note:
            notes.append(plan.note)
        if self.tokenizer is not None:
            tokenizer = Tokenizer.load(self.tokenizer)
        elif self.own_tokenizer.exists():
            tokenizer = Tokenizer.load(self.own_tokenizer)
        else:
            tokenizer = self._train_tokenizer(plan, notes)
        folder = self.folder(tokenizer)
        folder.mkdir(exist_ok=True)
        remove_leftovers(folder)
        notes.append(tokenizer.use_fastest(_sample(self.source, plan)))
        start = time.perf_counter()
        shards = write_splits(
            self.source,
            plan,
            tokenizer,
            folder,
            shard_tokens=self.shard_tokens,
            progress=self.progress,
        )
        for split, infos in shards.items():
            if not infos:
                raise ValueError(
                    f"{self.source.name} is too short: nothing is left for the {split} split. Give "
                    f"more text, or a file named for it, such as {split}.txt beside train.txt"
                )
        tokenizer.save(folder / "tokenizer.json")
        write_manifest(folder, self.source, plan, tokenizer, shards)
        notes.append(f"tokenised into {folder} in {time.perf_counter() - start:.1f} s")
        return tokenizer, folder

    def _train_tokenizer(self, plan: SplitPlan, notes: list[str]) -> Tokenizer:
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
        tokenizer.save(self.own_tokenizer)
        notes.append(
            f"tokenizer: {tokenizer.vocab_size:,} tokens, trained in "
            f"{time.perf_counter() - start:.1f} s on {characters / 1e6:,.1f} million characters of "
            f"the training text, kept as {self.own_tokenizer}"
        )
        return tokenizer


def _sample(source: Source, plan: SplitPlan) -> list[str]:
    texts: list[str] = []
    size = 0
    for _, piece in split_pieces(source, plan):
        texts.append(piece.text)
        size += len(piece.text)
        if size >= _SAMPLE_CHARS:
            break
    return texts


def main(
    data: str = "python-docs",
    *,
    tokenizer: str | None = None,
    vocab_size: int = 32000,
    cache_dir: Path = Path("data"),
    verify: bool = False,
) -> None:
    """Tokenise a corpus ahead of training.

    Args:
        data: python-docs, tinystories, wikitext-2, openwebtext, or a file, folder or pattern.
        tokenizer: a tokenizer.json, a folder with one, or GPT-2's encoder.json and vocab.bpe.
        vocab_size: tokens of the tokenizer trained on the text, where none is given.
        cache_dir: folder for everything written.
        verify: check the SHA-256 of every shard, however large they are.
    """
    try:
        prepared = prepare(
            data,
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            cache_dir=cache_dir,
            verify=verify or None,
        )
    except ValueError as error:
        sys.exit(f"error: {error}")
    print("\n".join(prepared.notes))


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
