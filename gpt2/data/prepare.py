"""From text to training data: find the source, train or load the tokenizer, tokenise once, reuse.

    python -m gpt2.data.prepare --data my.txt --vocab-size 8000

The name of a prepared folder in the cache folder is made of the source, its fingerprint and the
tokenizer's. It holds numbered shards, tokenizer.json and, written last, manifest.json. Without the
manifest the folder is work in progress: its whole shards are kept and the rest is made again.
Source and tokenizer fix every byte, so work that was interrupted or done twice comes out the same,
and so does that of many machines (gpt2/data/datatrove.py).
"""

from dataclasses import dataclass
from pathlib import Path

from gpt2.common.files import remove_leftovers
from gpt2.config import TokenType
from gpt2.data.job import SHARD_BYTES, Job
from gpt2.data.manifest import open_splits, shards_entry, write_manifest
from gpt2.data.shards import TokenStream
from gpt2.data.token_splits import open_token_files, write_token_manifest
from gpt2.data.tokenise import write_splits
from gpt2.tokenizer import Tokenizer


@dataclass(frozen=True)
class Prepared:
    """Tokenised data, ready to train on."""

    tokenizer: Tokenizer  # that wrote the ids
    splits: dict[str, TokenStream]  # no "train" where all files are named for other splits
    folder: Path
    name: str  # of the source
    fingerprint: str  # of the source: hex digits that change with its text
    notes: tuple[str, ...]  # lines worth printing


def prepare(
    data: str,
    *,
    tokenizer: str | None = None,
    vocab_size: int = 32000,
    cache_dir: Path = Path("data"),
    progress: bool = True,
    verify: bool | None = None,
    shard_bytes: int = SHARD_BYTES,
    token_type: TokenType | None = None,
) -> Prepared:
    """Prepare a data set, or open one that was prepared before from the same text and tokenizer.

    Token files that others made are checked, and used where they lie.

    Args:
        data, tokenizer, vocab_size, cache_dir, progress, shard_bytes, token_type: see
            `gpt2.data.job.Job`.
        verify: check the SHA-256 of every shard; None does so up to 1 GiB, not of token files.
            Headers and lengths are checked always.

    Raises:
        ValueError: the text cannot be read, or is too short to have all three splits; or, as
            `ShardError`, prepared data is damaged. Each says where and what to do.
    """
    job = Job(data, tokenizer, vocab_size, cache_dir, progress, shard_bytes, token_type)
    return prepare_job(job, verify=verify)


def prepare_job(job: Job, *, verify: bool | None) -> Prepared:
    """Do what `prepare` does for a job that is begun."""
    found = job.find()
    if found is None:
        with job.lock():
            # The process that held the lock before may have made just this.
            found = job.find() or _build(job)
    else:
        job.notes.append(f"reused {found[1]}")
    return _open(job, *found, verify=verify)


def _build(job: Job) -> tuple[Tokenizer, Path]:
    """Do the work, or the rest of it, and write the manifest last. The caller holds the lock."""
    plan, tokenizer, folder = job.begin()
    if job.source.token_files:
        tokenizer.save(folder / "tokenizer.json")
        write_token_manifest(folder, job.source, tokenizer, job.token_type, progress=job.progress)
        return tokenizer, folder
    remove_leftovers(folder)
    splits = write_splits(job, plan, tokenizer, folder)
    tokenizer.save(folder / "tokenizer.json")
    entries = {split: shards_entry(split, work.made) for split, work in splits.items()}
    write_manifest(folder, job.source, plan.note, tokenizer, entries)
    return tokenizer, folder


def _open(job: Job, tokenizer: Tokenizer, folder: Path, *, verify: bool | None) -> Prepared:
    source = job.source
    if source.token_files:
        splits, notes = open_token_files(
            folder, source, tokenizer, job.token_type, verify=bool(verify)
        )
        job.notes += notes
    else:
        splits = open_splits(folder, tokenizer, source=source, verify=verify)
    for split, stream in splits.items():
        job.notes.append(
            f"{split}: {len(stream):,} tokens, {stream.n_documents:,} documents, "
            f"{stream.n_bytes / len(stream):.2f} bytes/token"
        )
    return Prepared(tokenizer, splits, folder, source.name, source.fingerprint, tuple(job.notes))


@dataclass(frozen=True)
class Arguments:
    """Tokenise a corpus ahead of training; gpt2.data.datatrove does it on many machines."""

    data: str = "python-docs"
    """python-docs, tinystories, wikitext-2, openwebtext, or a file, folder or pattern, of text or
    of token ids."""
    tokenizer: str | None = None
    """A tokenizer.json, a folder with one, GPT-2's encoder.json and vocab.bpe, or gpt2, which
    fetches these. None: one is trained on the text, once."""
    vocab_size: int = 32000
    """Tokens of the tokenizer trained on the text, where none is given."""
    cache_dir: Path = Path("data")
    """Folder for everything written."""
    token_type: TokenType | None = None
    """uint16 or uint32: the type of the ids in token files that do not say it."""
    verify: bool = False
    """Check the SHA-256 of every file, however large they are."""


def main(arguments: Arguments) -> None:
    prepared = prepare(
        arguments.data,
        tokenizer=arguments.tokenizer,
        vocab_size=arguments.vocab_size,
        cache_dir=arguments.cache_dir,
        verify=arguments.verify or None,
        token_type=arguments.token_type,
    )
    print("\n".join(prepared.notes))


if __name__ == "__main__":
    from gpt2.common.cli import run_tool

    run_tool(main, Arguments)
