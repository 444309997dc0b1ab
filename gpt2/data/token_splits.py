"""Splits of token files that others made: mapped where they lie, checked and counted once.

The prepared folder of such files holds no shards but tokenizer.json and a manifest: how the files
are cut into splits, and what was counted in them. Where no file is named for validation, the end of
the training tokens is held out.

`<|endoftext|>` closes a document in nanoGPT's files and ours, and opens it in llm.c's. As one
sequence both are the same but for their ends. So tokens that begin with it, and do not end with it,
are read from the second one on, and it stands at the end.
"""

import itertools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpt2.common.files import sha256_file
from gpt2.common.json_files import from_json
from gpt2.common.progress import progress_bar
from gpt2.config import TokenType
from gpt2.data.documents import SPLITS, Source
from gpt2.data.manifest import read_manifest, usable, write_manifest
from gpt2.data.shards import ShardError, TokenStream
from gpt2.data.splits import HELD_OUT_BYTES, HOLDOUT
from gpt2.data.token_files import count_ids, map_ids
from gpt2.tokenizer import Tokenizer
from gpt2.tokenizer.bpe import END_OF_TEXT

_BYTES_PER_TOKEN = 4  # about
_SEARCH = 1 << 20  # tokens among which the end of a document is looked for, to cut there

Parts = list[tuple[Path, NDArray[np.integer]]]


def write_token_manifest(
    folder: Path,
    source: Source,
    tokenizer: Tokenizer,
    token_type: TokenType | None,
    *,
    progress: bool,
) -> None:
    """Check and count every id of the source's files, cut them into splits, write the manifest.

    Raises:
        ValueError: a file of which `map_ids` or `count_ids` cannot use something, or too few ids to
            hold some out; says what to do.
    """
    splits = _map_files(source, tokenizer, token_type)
    cuts = {split: (split, 0, _length(parts)) for split, parts in splits.items()}
    held_out = ""
    if "train" in splits and "valid" not in splits:
        total = cuts["train"][2]
        every = max(HOLDOUT, -(-total * _BYTES_PER_TOKEN // HELD_OUT_BYTES))
        if total < 2 * HOLDOUT:
            raise ValueError(
                f"{source.name} is too short: of {total} ids nothing can be held out for "
                "validation. Give more, or a file named for it, such as val.bin beside train.bin"
            )
        cut = _document_start(splits["train"], total - total // every, tokenizer.eot_id)
        cuts |= {"train": ("train", 0, cut), "valid": ("train", cut, total)}
        held_out = f"valid: 1/{every} of the training tokens, at their end"
    size = np.array([len(tokenizer.decode_bytes([id])) for id in range(tokenizer.vocab_size)])
    size[tokenizer.eot_id] = 0
    entries = {}
    for split in (split for split in SPLITS if split in cuts):
        of, start, stop = cuts[split]
        parts = _cut(splits[of], start, stop)
        with progress_bar(
            progress, parts, f"checking the ids of {source.name}, {split}", unit="file"
        ) as bar:
            counts = np.sum([count_ids(p, ids, tokenizer.vocab_size) for p, ids in bar], axis=0)
        entries[split] = {
            "tokens": stop - start,
            "documents": int(counts[tokenizer.eot_id]),
            "text_bytes": int(counts @ size),
            "of": of,
            "start": start,
        }
    write_manifest(folder, source, held_out, tokenizer, entries)


def open_token_files(
    folder: Path,
    source: Source,
    tokenizer: Tokenizer,
    token_type: TokenType | None,
    *,
    verify: bool,
) -> tuple[dict[str, TokenStream], list[str]]:
    """Open the splits of token files that were checked before, and lines worth printing.

    Raises:
        ValueError: a header or a size is wrong; or, as `ShardError`, the manifest is damaged or,
            with `verify`, a file is not the one that was checked.
    """
    splits = _map_files(source, tokenizer, token_type)
    again = "Run again: all ids are checked anew"
    if verify:
        paths = itertools.chain(*source.token_files.values())
        for path, entry in zip(paths, source.details["files"], strict=True):
            if sha256_file(path) != entry["sha256"]:
                raise ShardError(
                    f"{path} fails its SHA-256 checksum: its contents have changed, and its time "
                    "has not. Fetch it again; or take it as it is: touch it, and run again"
                )
    manifest = read_manifest(folder, source)
    streams, notes = {}, []
    for split, entry in manifest["splits"].items():
        with usable(folder):
            start, tokens, n_bytes, n_documents = (
                from_json(int, entry[key]) for key in ("start", "tokens", "text_bytes", "documents")
            )
            streams[split] = TokenStream(
                _cut(splits[entry["of"]], start, start + tokens),
                vocab_size=tokenizer.vocab_size,
                tokenizer_hash=tokenizer.hash,
                n_bytes=n_bytes,
                n_documents=n_documents,
                remedy=again,
            )
        if not n_documents:
            notes.append(
                f"{split}: no id is {tokenizer.eot_id}, {END_OF_TEXT}: nothing tells where a "
                "document ends"
            )
    return streams, notes


def _map_files(
    source: Source, tokenizer: Tokenizer, token_type: TokenType | None
) -> dict[str, Parts]:
    """Map the files of each split, with `<|endoftext|>` at the end of documents."""
    splits = {}
    for split, paths in source.token_files.items():
        parts = [(path, map_ids(path, token_type, tokenizer_hash=tokenizer.hash)) for path in paths]
        path, first = parts[0]
        if first[0] == tokenizer.eot_id != parts[-1][1][-1]:
            parts = [(path, first[1:]), *parts[1:], (path, first[:1])]
        splits[split] = parts
    return splits


def _length(parts: Parts) -> int:
    return sum(len(ids) for _, ids in parts)


def _cut(parts: Parts, start: int, stop: int) -> Parts:
    """The ids start..stop-1 of all parts as one sequence."""
    found, begin = [], 0
    for path, ids in parts:
        piece = ids[max(start - begin, 0) : max(stop - begin, 0)]
        begin += len(ids)
        if len(piece):
            found.append((path, piece))
    return found


def _document_start(parts: Parts, start: int, eot_id: int) -> int:
    """The first place from `start` on where a document begins, if one does soon; else `start`."""
    place = start
    for _, ids in _cut(parts, start - 1, start + _SEARCH):
        ends = np.flatnonzero(ids == eot_id)
        if len(ends):
            place += int(ends[0])
            return place if place < _length(parts) else start
        place += len(ids)
    return start
