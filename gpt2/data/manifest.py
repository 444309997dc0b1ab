"""The manifest of a prepared folder: its shards, and what they were made from; written last.

A folder without one is work in progress. Shards are listed as plain file names in that folder.
"""

import itertools
import platform
import reprlib
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
    shards: dict[str, list[ShardInfo]],
) -> None:
    """Declare `folder` finished: its shards are those in `shards`, numbered in order.

    `held_out` says how splits were taken out of the training text; it is empty if none were.
    """
    manifest: dict[str, Any] = {
        "format": _FORMAT,
        "source": {"name": source.name, "fingerprint": source.fingerprint, **source.details},
        "held_out": held_out or "nothing: the source names its splits",
        "tokenizer": {"hash": tokenizer.hash, "vocab_size": tokenizer.vocab_size},
        "splits": {
            split: {
                "tokens": sum(info.tokens for info in infos),
                "documents": sum(info.counts.documents for info in infos),
                "text_bytes": sum(info.counts.text_bytes for info in infos),
                "shards": [
                    {"file": shard_name(split, i), "tokens": info.tokens, "sha256": info.sha256}
                    for i, info in enumerate(infos)
                ],
            }
            for split, infos in shards.items()
        },
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
    }
    write_json(folder / MANIFEST, manifest)


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
        stream = TokenStream(paths, tokenizer_hash=tokenizer.hash, verify=verify)
        streams[split] = stream
        if stream.vocab_size != tokenizer.vocab_size:
            sizes = f"{stream.vocab_size:,} tokens, and the tokenizer has {tokenizer.vocab_size:,}"
            raise shard_error(stream.paths[0], f"is of a vocabulary of {sizes}")
    return streams


def _read_listed(folder: Path, source: Source | None) -> dict[str, dict[str, str]]:
    """The SHA-256 of each split's shards by file name, from the manifest."""
    path = folder / MANIFEST
    try:
        manifest = read_json_object(path)
        if manifest["format"] != _FORMAT:
            found = reprlib.repr(manifest["format"])
            raise ValueError(f"format {found}; this program reads {_FORMAT}")
        listed = {
            split: {str(shard["file"]): str(shard["sha256"]) for shard in entry["shards"]}
            for split, entry in manifest["splits"].items()
        }
        if source and manifest["source"]["fingerprint"] != source.fingerprint:
            raise ValueError(f"it was made of another text than {source.name} is")
        for name in itertools.chain(*listed.values()):
            if not SHARD_NAME.fullmatch(name):
                raise ValueError(f"shard name {name!r:.100}")
        if not all(listed.values()):
            raise ValueError("a split has no shard")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ShardError(
            f"{path} cannot be used ({error}). Delete the folder {folder} and run again: it is "
            "prepared anew from the source text."
        ) from error
    return listed
