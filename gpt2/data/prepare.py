"""From text to training data: find the source, train or load the tokenizer, tokenise once, reuse.

    python -m gpt2.data.prepare --data my.txt --vocab-size 8000

A prepared folder lies in the cache folder under a name made of the source, its fingerprint and the
tokenizer's, and holds numbered shards, tokenizer.json and, written last, manifest.json. Without the
manifest the folder is work in progress: its whole shards are kept and the rest is made again.
Source and tokenizer fix every byte of it, so work that is interrupted, or done twice, comes out the
same. So does work that is divided, over processes or machines that have the same text:

    python -m gpt2.data.prepare --data corpus --tokenizer t --shard 1/2     # on one
    python -m gpt2.data.prepare --data corpus --tokenizer t --shard 2/2     # on the other
    python -m gpt2.data.prepare --data corpus --tokenizer t --merge         # files in one folder

How it is divided, and why so, is told in gpt2/data/parts.py.
"""

import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2.common.files import remove_leftovers
from gpt2.data.documents import Source
from gpt2.data.job import Job
from gpt2.data.manifest import MANIFEST, open_splits, write_manifest
from gpt2.data.parts import (
    count_parts,
    merge_parts,
    parse_part,
    part_is_done,
    remove_part_manifests,
    write_part,
)
from gpt2.data.shards import TokenStream
from gpt2.data.sources import open_source
from gpt2.data.splits import SplitPlan, plan_splits
from gpt2.data.tokenise import WHOLE, Part, SplitShards, write_splits
from gpt2.tokenizer import Tokenizer

# Of text: some 30 million tokens, which are held in memory, and which a kill can cost.
SHARD_BYTES = 1 << 27


@dataclass(frozen=True)
class Prepared:
    """Tokenised data, ready to train on.

    Attributes:
        tokenizer: the tokenizer whose ids the splits hold.
        splits: "train", "valid", "test"; no "train" where all files are named for the others.
        folder: where the data lies.
        name: the source's short name.
        fingerprint: of the source; hex digits that change with its text.
        notes: lines worth printing.
    """

    tokenizer: Tokenizer
    splits: dict[str, TokenStream]
    folder: Path
    name: str
    fingerprint: str
    notes: tuple[str, ...]


def prepare(
    data: str,
    *,
    tokenizer: str | None = None,
    vocab_size: int = 32000,
    cache_dir: Path = Path("data"),
    progress: bool = True,
    verify: bool | None = None,
    shard_bytes: int = SHARD_BYTES,
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
        shard_bytes: bytes of text after which a shard ends.

    Raises:
        ValueError: the text cannot be read, or is too short to have all three splits; or, as
            `ShardError`, prepared data is damaged. Each says where and what to do.
    """
    source = open_source(data, cache_dir=cache_dir)
    job = Job(data, source, tokenizer, vocab_size, cache_dir, progress)
    notes = list(source.notes)
    found = job.find()
    if found is None:
        with job.lock():
            # Who held the lock before may have made just this.
            found = job.find() or _build(job, notes, shard_bytes)
    else:
        notes.append(f"reused {found[1]}")
    return _open(source, found, notes, verify=verify)


def prepare_part(
    data: str,
    part: Part,
    *,
    tokenizer: str | None = None,
    vocab_size: int = 32000,
    cache_dir: Path = Path("data"),
    progress: bool = True,
    shard_bytes: int = SHARD_BYTES,
) -> tuple[str, ...]:
    """Make the shards of one part; processes with other parts may be at work in the same folder.

    All parts must see the same text and have the same tokenizer. Where none is named, and none of
    this text is in the cache folder, the first process trains it and the others wait.

    Args:
        part: which share of the work, of how many.
        data, tokenizer, vocab_size, cache_dir, progress, shard_bytes: as of `prepare`; the same for
            all parts.

    Returns:
        Lines worth printing.

    Raises:
        ValueError: as `prepare`; or another process is making this part.
    """
    source = open_source(data, cache_dir=cache_dir)
    job = Job(data, source, tokenizer, vocab_size, cache_dir, progress)
    notes = list(source.notes)
    with ExitStack() as held:
        with job.lock():
            if found := job.find():
                return (*notes, f"{found[1]} is finished: there is nothing left to do")
            plan = _plan(source, notes)
            chosen = job.load_tokenizer() or job.train_tokenizer(plan, notes)
            folder = job.folder(chosen)
            folder.mkdir(exist_ok=True)
            chosen.save(folder / "tokenizer.json")
            held.enter_context(job.part_lock(folder, part))
        if part_is_done(folder, part, source, chosen):
            notes.append(f"part {part} is in {folder} already")
        else:
            splits = _tokenise(job, plan, chosen, folder, notes, part, shard_bytes)
            write_part(folder, part, source, plan, chosen, splits)
    notes.append(
        f"{count_parts(folder, part.of)} of {part.of} parts are in {folder}. Other machines need "
        "its tokenizer.json (--tokenizer), and what they make is copied into it. When all parts "
        f"are there: {job.command('--merge')}"
    )
    return tuple(notes)


def merge(
    data: str,
    *,
    tokenizer: str | None = None,
    vocab_size: int = 32000,
    cache_dir: Path = Path("data"),
    progress: bool = True,
) -> Prepared:
    """Make a prepared folder of parts, all of whose files lie in it; every shard is verified.

    Args:
        data, tokenizer, vocab_size, cache_dir, progress: as of `prepare_part`.

    Raises:
        ValueError: a part is missing, damaged or does not fit; says which, and what to do.
    """
    source = open_source(data, cache_dir=cache_dir)
    job = Job(data, source, tokenizer, vocab_size, cache_dir, progress)
    notes = list(source.notes)
    with job.lock():
        chosen = job.load_tokenizer()
        if chosen is None:
            raise ValueError(
                f"--merge needs the tokenizer of the parts, and {job.own_tokenizer} is not there. "
                "Name it: --tokenizer path/to/tokenizer.json"
            )
        folder = job.folder(chosen)
        with job.no_parts_at_work(folder):
            if not (folder / MANIFEST).exists():
                plan, shards = merge_parts(
                    folder, source, chosen, command=job.command, progress=progress
                )
                chosen.save(folder / "tokenizer.json")
                write_manifest(folder, source, plan, chosen, shards)
            remove_part_manifests(folder)
            remove_leftovers(folder)
    notes.append(f"merged in {folder}")
    return _open(source, (chosen, folder), notes, verify=False)


def _build(job: Job, notes: list[str], shard_bytes: int) -> tuple[Tokenizer, Path]:
    """Do the work, or the rest of it; the manifest comes last. The caller holds the lock."""
    plan = _plan(job.source, notes)
    tokenizer = job.load_tokenizer() or job.train_tokenizer(plan, notes)
    folder = job.folder(tokenizer)
    folder.mkdir(exist_ok=True)
    with job.no_parts_at_work(folder):
        remove_leftovers(folder)
        splits = _tokenise(job, plan, tokenizer, folder, notes, WHOLE, shard_bytes)
        tokenizer.save(folder / "tokenizer.json")
        shards = {split: list(work.made.values()) for split, work in splits.items()}
        write_manifest(folder, job.source, plan, tokenizer, shards)
        remove_part_manifests(folder)
    return tokenizer, folder


def _plan(source: Source, notes: list[str]) -> SplitPlan:
    plan = plan_splits(source)
    if plan.note:
        notes.append(plan.note)
    return plan


def _tokenise(
    job: Job,
    plan: SplitPlan,
    tokenizer: Tokenizer,
    folder: Path,
    notes: list[str],
    part: Part,
    shard_bytes: int,
) -> dict[str, SplitShards]:
    start = time.perf_counter()
    splits = write_splits(
        job.source,
        plan,
        tokenizer,
        folder,
        part=part,
        shard_bytes=shard_bytes,
        progress=job.progress,
    )
    notes.append(f"tokenised into {folder} in {time.perf_counter() - start:.1f} s")
    return splits


def _open(
    source: Source, found: tuple[Tokenizer, Path], notes: list[str], *, verify: bool | None
) -> Prepared:
    tokenizer, folder = found
    splits = open_splits(folder, tokenizer, source=source, verify=verify)
    for split, stream in splits.items():
        notes.append(
            f"{split}: {len(stream):,} tokens, {stream.n_documents:,} documents, "
            f"{stream.n_bytes / len(stream):.2f} bytes/token"
        )
    return Prepared(tokenizer, splits, folder, source.name, source.fingerprint, tuple(notes))


@dataclass(frozen=True)
class Arguments:
    """Tokenise a corpus ahead of training: at one go, or in parts by several processes or machines
    (--shard), whose work is then put together (--merge)."""

    data: str = "python-docs"
    """python-docs, tinystories, wikitext-2, openwebtext, or a file, folder or pattern."""
    tokenizer: str | None = None
    """A tokenizer.json, a folder with one, or GPT-2's encoder.json and vocab.bpe. None: one is
    trained on the text, once."""
    vocab_size: int = 32000
    """Tokens of the tokenizer trained on the text, where none is given."""
    cache_dir: Path = Path("data")
    """Folder for everything written."""
    verify: bool = False
    """Check the SHA-256 of every shard, however large they are."""
    shard: str | None = None
    """I/N: tokenise only the I-th of N parts, such as 3/8. Start 1/8 to 8/8 in any order, in one
    cache folder, or on machines with the same text under the same name and the same --tokenizer."""
    merge: bool = False
    """Put parts together, once all N are there; other machines' are first copied to the folder of
    the same name in this cache folder."""


def main(arguments: Arguments) -> None:
    if arguments.merge and arguments.shard is not None:
        raise ValueError("give --shard or --merge: parts are merged when all are made")
    if arguments.verify and (arguments.merge or arguments.shard is not None):
        raise ValueError("--merge verifies every shard, and --shard those it finds: no --verify")
    where: dict[str, Any] = {
        "tokenizer": arguments.tokenizer,
        "vocab_size": arguments.vocab_size,
        "cache_dir": arguments.cache_dir,
    }
    if arguments.shard is not None:
        notes = prepare_part(arguments.data, parse_part(arguments.shard), **where)
    elif arguments.merge:
        notes = merge(arguments.data, **where).notes
    else:
        notes = prepare(arguments.data, verify=arguments.verify or None, **where).notes
    print("\n".join(notes))


if __name__ == "__main__":
    from gpt2.common.cli import run_tool

    run_tool(main, Arguments)
