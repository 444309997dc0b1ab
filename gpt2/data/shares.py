"""The work of many processes on one corpus: each encodes a share of the text, one joins the ids.

Which split and which shard a document belongs to depends on all documents before it, but its ids
do not. So a share is encoded with no regard to the others; of each piece its ids and its length
are kept, and that is enough to write the shards without the text.
"""

import os
import platform
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt2.common.files import atomic_write
from gpt2.data.documents import EncodedPiece
from gpt2.data.job import Job
from gpt2.data.prepare import prepare_job
from gpt2.data.shards import id_dtype
from gpt2.data.tokenise import BATCH_CHARS
from gpt2.tokenizer import Tokenizer
from gpt2.tokenizer.pretokens import in_batches


def write_share(place: str, options: Mapping[str, Any], _: object, share: int, of: int) -> None:
    """Encode one of `of` shares of a text, as a task of `gpt2.data.datatrove` in some process.

    Args:
        place: the folder that relative paths begin from.
        options: of `Job`; its tokenizer is given.
        share: of the shares, counted from 0.
    """
    os.chdir(place)
    job = Job(**options)
    tokenizer = Tokenizer.load(options["tokenizer"])
    _write(job, tokenizer, _share_paths(job.folder(tokenizer), of)[share], share, of)


def finish(place: str, options: Mapping[str, Any], of: int, *_: object) -> None:
    """Put the shares together, as the last task; those that are missing or damaged are made."""
    os.chdir(place)
    job = Job(**options)
    if job.find() is None:
        tokenizer = Tokenizer.load(options["tokenizer"])
        paths = _share_paths(job.folder(tokenizer), of)
        for share, path in enumerate(paths):
            if not _is_whole(path):
                _write(job, tokenizer, path, share, of)
        joined = {split: partial(_pieces, split, paths, tokenizer) for split in job.source.splits}
        job.source = replace(job.source, splits=joined)
        prepare_job(job, verify=True)
        shutil.rmtree(paths[0].parent)


def _share_paths(folder: Path, of: int) -> list[Path]:
    # Where a packed file is divided depends on the buffers of this Python.
    shares = folder / f"{of}-shares-python-{platform.python_version()}"
    return [shares / f"{share:05d}.npz" for share in range(of)]


def _write(job: Job, tokenizer: Tokenizer, path: Path, share: int, of: int) -> None:
    """Write a share: of each batch the ids, and a row for each piece, as `_pieces` reads them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dtype = id_dtype(tokenizer.vocab_size)
    with atomic_write(path) as file, zipfile.ZipFile(file, "w") as archive:
        for split, read in job.source.splits.items():
            batches = in_batches(read(share=share, of=of), BATCH_CHARS, lambda piece: piece.chars)
            for number, batch in enumerate(batches):
                ids = tokenizer.encode_documents([piece.text for piece in batch])
                rows = [
                    (len(own), piece.last, piece.chars, piece.n_bytes)
                    for own, piece in zip(ids, batch, strict=True)
                ]
                _add(archive, f"{split}-{number}-ids", np.concatenate(ids).astype(dtype))
                _add(archive, f"{split}-{number}-pieces", np.array(rows, np.int64))


def _add(archive: zipfile.ZipFile, name: str, array: NDArray[Any]) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.save(member, array)


def _is_whole(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def _pieces(split: str, paths: Sequence[Path], tokenizer: Tokenizer) -> Iterator[EncodedPiece]:
    for path in paths:
        with np.load(path) as archive:
            for number in count():
                if f"{split}-{number}-ids" not in archive:
                    break
                ids, rows = (archive[f"{split}-{number}-{part}"] for part in ("ids", "pieces"))
                own = np.split(ids, np.cumsum(rows[:-1, 0]))
                for piece, (_, last, chars, n_bytes) in zip(own, rows.tolist(), strict=True):
                    yield EncodedPiece(piece, bool(last), chars, n_bytes, tokenizer)
