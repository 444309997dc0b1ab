"""From text to training data: find the source, train or load the tokenizer, tokenise once, reuse.

    python -m gpt2.data.prepare --data my.txt --vocab-size 8000

The name of a prepared folder in the cache folder is made of the source, its fingerprint and the
tokenizer's. It holds numbered shards, tokenizer.json and, written last, manifest.json. Without the
manifest the folder is work in progress: its whole shards are kept and the rest is made again.
Source and tokenizer fix every byte, so work that was interrupted or done twice comes out the same.
So does work that is divided over processes, or over machines that have the same text:

    python -m gpt2.data.prepare --data corpus --tokenizer t --shard 1/2     # on one
    python -m gpt2.data.prepare --data corpus --tokenizer t --shard 2/2     # on the other
    python -m gpt2.data.prepare --data corpus --tokenizer t --merge         # files in one folder

gpt2/data/parts.py tells how the work is divided, and why so.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from gpt2.common.files import remove_leftovers
from gpt2.config import TokenType
from gpt2.data.job import SHARD_BYTES, WHOLE, Job, Part
from gpt2.data.manifest import MANIFEST, open_splits, shards_entry, write_manifest
from gpt2.data.parts import Parts, parse_part
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
    return _prepare(job, verify)


def _prepare(job: Job, verify: bool | None) -> Prepared:
    found = job.find()
    if found is None:
        with job.lock():
            # The process that held the lock before may have made just this.
            found = job.find() or _build(job)
    else:
        job.notes.append(f"reused {found[1]}")
    return _open(job, *found, verify=verify)


def prepare_part(job: Job, part: Part) -> tuple[str, ...]:
    """Make the shards of one part; processes with other parts may be at work in the same folder.

    All parts must see the same text and have the same tokenizer. If none is named, and none of this
    text is in the cache folder, the first process trains it and the others wait.

    Returns:
        Lines worth printing.

    Raises:
        ValueError: as `prepare`; or another process is making this part.
    """
    with ExitStack() as held:
        with job.lock():
            if found := job.find():
                return (*job.notes, f"{found[1]} is finished: there is nothing left to do")
            plan, tokenizer, folder = job.begin()
            tokenizer.save(folder / "tokenizer.json")
            try:
                held.enter_context(job.part_lock(folder, part))
            except TimeoutError as error:
                busy = f"--shard {part}: another process is making this part of {folder}"
                raise ValueError(busy) from error
        parts = Parts(job, tokenizer, folder)
        if parts.is_done(part):
            job.notes.append(f"part {part} is in {folder} already")
        else:
            parts.finish(part, plan.note, write_splits(job, plan, tokenizer, folder, part))
    finished = sum(other.of == part.of for other in parts.find())
    job.notes.append(
        f"{finished} of {part.of} parts are in {folder}. Other machines need "
        "its tokenizer.json (--tokenizer), and what they make is copied into it. When all parts "
        f"are there: {job.command('--merge')}"
    )
    return tuple(job.notes)


def merge(job: Job) -> Prepared:
    """Merge the parts whose files lie in one folder into prepared data; every shard is verified. A
    ValueError says which part is missing, damaged or does not fit, and what to do."""
    with job.lock():
        tokenizer = job.load_tokenizer()
        if tokenizer is None:
            raise ValueError(
                f"--merge needs the tokenizer of the parts, and {job.own_tokenizer} is not there. "
                "Name it: --tokenizer path/to/tokenizer.json"
            )
        folder = job.folder(tokenizer)
        parts = Parts(job, tokenizer, folder)
        job.wait_for_parts(folder)
        if not (folder / MANIFEST).exists():
            held_out, shards = parts.merge()
            tokenizer.save(folder / "tokenizer.json")
            entries = {split: shards_entry(split, infos) for split, infos in shards.items()}
            write_manifest(folder, job.source, held_out, tokenizer, entries)
        parts.remove_manifests()
        remove_leftovers(folder)
    job.notes.append(f"merged in {folder}")
    return _open(job, tokenizer, folder, verify=False)


def _build(job: Job) -> tuple[Tokenizer, Path]:
    """Do the work, or the rest of it, and write the manifest last. The caller holds the lock."""
    plan, tokenizer, folder = job.begin()
    if job.source.token_files:
        tokenizer.save(folder / "tokenizer.json")
        write_token_manifest(folder, job.source, tokenizer, job.token_type, progress=job.progress)
        return tokenizer, folder
    job.wait_for_parts(folder)
    remove_leftovers(folder)
    splits = write_splits(job, plan, tokenizer, folder, WHOLE)
    tokenizer.save(folder / "tokenizer.json")
    entries = {
        split: shards_entry(split, list(work.made.values())) for split, work in splits.items()
    }
    write_manifest(folder, job.source, plan.note, tokenizer, entries)
    Parts(job, tokenizer, folder).remove_manifests()
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
    """Tokenise a corpus ahead of training: at one go, or in parts by several processes or machines
    (--shard), which are then put together (--merge)."""

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
    part = None if arguments.shard is None else parse_part(arguments.shard)
    job = Job(
        arguments.data,
        arguments.tokenizer,
        arguments.vocab_size,
        arguments.cache_dir,
        token_type=arguments.token_type,
    )
    if part:
        notes = prepare_part(job, part)
    else:
        notes = (merge(job) if arguments.merge else _prepare(job, arguments.verify or None)).notes
    print("\n".join(notes))


if __name__ == "__main__":
    from gpt2.common.cli import run_tool

    run_tool(main, Arguments)
