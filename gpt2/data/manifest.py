"""The manifest of a prepared folder: its shards, and what they were made from; written last.

A folder without one is work in progress. Shards are listed as plain file names in that folder.
"""

import itertools
import platform
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from gpt2.common.files import write_json
from gpt2.common.json_files import read_json_object
from gpt2.data.documents import SPLITS, Source
from gpt2.data.shards import (
    SHARD_NAME,
    ShardError,
    ShardInfo,
    TokenStream,
    open_shards,
    read_header,
    shard_error,
    shard_name,
)
from gpt2.tokenizer import Tokenizer

MANIFEST = "manifest.json"
_FORMAT = 1
_VERIFY_BYTES = 1 << 30  # ids up to this size are verified whenever they are opened: a second


def write_manifest(
    folder: Path,
    source: Source,
    held_out: str,
    tokenizer: Tokenizer,
    splits: Mapping[str, Mapping[str, Any]],
) -> None:
    """Declare `folder` finished, with these entries of its splits.

    `held_out` says how splits were taken out of the training text; it is empty if none were.
    """
    manifest: dict[str, Any] = {
        "format": _FORMAT,
        "source": {"name": source.name, "fingerprint": source.fingerprint, **source.details},
        "held_out": held_out or "nothing: the source names its splits",
        "tokenizer": {"hash": tokenizer.hash, "vocab_size": tokenizer.vocab_size},
        "splits": splits,
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
    }
    write_json(folder / MANIFEST, manifest)


def shards_entry(split: str, infos: Sequence[ShardInfo]) -> dict[str, Any]:
    """The entry of a split that consists of these shards, numbered in order."""
    return {
        "tokens": sum(info.tokens for info in infos),
        "documents": sum(info.counts.documents for info in infos),
        "text_bytes": sum(info.counts.text_bytes for info in infos),
        "shards": [
            {"file": shard_name(split, i), "tokens": info.tokens, "sha256": info.sha256}
            for i, info in enumerate(infos)
        ],
    }


def open_splits(
    folder: Path, tokenizer: Tokenizer, *, source: Source | None = None, verify: bool | None = None
) -> dict[str, TokenStream]:
    """Map the shards of a finished folder into memory, checked against its manifest.

    Args:
        folder: holds the manifest.
        tokenizer: must be the one that wrote the ids.
        source: if given, must be the one whose text the ids hold.
        verify: also check the SHA-256 of all ids. None does so when they are at most 1 GiB.

    Raises:
        ShardError: manifest or shard missing, damaged, or of another tokenizer; says which.
    """
    listed = _read_listed(folder, source)
    size = 0
    for files in listed.values():
        for name, sha256 in files.items():
            header = read_header(folder / name)
            size += header.payload_bytes
            if header.sha256 != sha256:
                raise shard_error(folder / name, f"is not the one that {folder / MANIFEST} lists")
    if verify is None:
        verify = size <= _VERIFY_BYTES
    streams = {}
    for split in (split for split in SPLITS if split in listed):
        paths = [folder / name for name in listed[split]]
        stream = open_shards(paths, tokenizer_hash=tokenizer.hash, verify=verify)
        streams[split] = stream
        if stream.vocab_size != tokenizer.vocab_size:
            sizes = f"{stream.vocab_size:,} tokens, and the tokenizer has {tokenizer.vocab_size:,}"
            raise shard_error(stream.paths[0], f"is of a vocabulary of {sizes}")
    return streams


def _read_listed(folder: Path, source: Source | None) -> dict[str, dict[str, str]]:
    """The SHA-256 of each split's shards by file name, from the manifest."""
    manifest = read_manifest(folder, source)
    with usable(folder):
        listed = {
            split: {str(shard["file"]): str(shard["sha256"]) for shard in entry["shards"]}
            for split, entry in manifest["splits"].items()
        }
        for name in itertools.chain(*listed.values()):
            if not SHARD_NAME.fullmatch(name):
                raise ValueError(f"shard name {name!r:.100}")
        if not all(listed.values()):
            raise ValueError("a split has no shard")
    return listed


def read_manifest(folder: Path, source: Source | None = None) -> dict[str, Any]:
    """Read the manifest of a finished folder, which must be that of `source` if it is given.

    Raises:
        ShardError: missing, damaged, or of another text.
    """
    with usable(folder):
        manifest = read_json_object(folder / MANIFEST)
        if manifest["format"] != _FORMAT:
            found = reprlib.repr(manifest["format"])
            raise ValueError(f"format {found}; this program reads {_FORMAT}")
        if source and manifest["source"]["fingerprint"] != source.fingerprint:
            raise ValueError(f"it was made of another text than {source.name} is")
    return manifest


@contextmanager
def usable(folder: Path) -> Iterator[None]:
    """Turn errors in the content of a manifest into a `ShardError` with the remedy."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ShardError(
            f"{folder / MANIFEST} cannot be used ({error}). Delete the folder {folder} and run "
            "again: it is prepared anew from the source."
        ) from error
