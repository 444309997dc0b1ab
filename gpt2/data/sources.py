"""The sources that `--data` may name: built-in corpora and local files.

Files named for a split (train, valid, test) are that split; all others are training text.
"""

import glob
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from gpt2.common.files import sha256_file, write_json
from gpt2.common.json_files import from_json, read_json
from gpt2.data.documents import SPLITS, Piece, Source
from gpt2.data.hub import HUB_DATASETS, hub_source
from gpt2.data.python_docs import python_docs
from gpt2.data.readers import FORMATS, file_format, read_pieces, split_suffix

BUILT_IN = ("python-docs", *HUB_DATASETS)

_LAYOUT = "1"  # part of the fingerprint: change it when files are cut into documents otherwise
_SPLIT_WORD = re.compile(
    r"(?<![a-z])(?:(train|training)|(valid|validation|val|dev)|(test))(?![a-z])"
)
_ABOUT_THE_DATA = {"readme", "license", "licence", "notice", "copying", "changelog"}
_KINDS = f"Usable are UTF-8 text and Parquet: {', '.join(FORMATS)}; all but .parquet also as .gz."


def open_source(data: str, *, cache_dir: Path) -> Source:
    """Open the source that `data` names.

    Args:
        data: one of `BUILT_IN`, or the path of a file or folder, or a glob pattern.
        cache_dir: folder that keeps the checksums of files and the revisions of hub data sets.

    Raises:
        ValueError: there is nothing, or nothing that can be read; says what was looked for.
    """
    path = Path(data).expanduser()
    if data == "python-docs":
        return python_docs()
    if data in HUB_DATASETS:
        return hub_source(data, cache_dir=cache_dir)
    if path.is_file():
        if file_format(path) is None:
            raise ValueError(
                f"--data {data}: no known kind of file ({path.suffix or 'no suffix'}). {_KINDS}"
            )
        return _local_source(split_suffix(path)[0], path.parent, [path], cache_dir)
    if path.is_dir():
        files = [file for file in path.rglob("*") if _is_usable(file, path)]
        if not files:
            raise ValueError(f"--data {data}: no file in this folder can be used. {_KINDS}")
        return _local_source(path.resolve().name, path, files, cache_dir)
    if glob.has_magic(data):
        files = [Path(file) for file in glob.glob(str(path), recursive=True)]
        files = [file for file in files if file.is_file() and file_format(file)]
        if not files:
            raise ValueError(f"--data {data}: the pattern matches no file to use. {_KINDS}")
        root = Path(os.path.commonpath([file.parent for file in files]))
        return _local_source(root.resolve().name or "text", root, files, cache_dir)
    raise ValueError(
        f"--data {data}: no such file or folder, and none of the built-in names "
        f"({', '.join(BUILT_IN)})."
    )


def _is_usable(path: Path, root: Path) -> bool:
    """Return whether a file in a folder is text to train on: not hidden, not a README."""
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    about = split_suffix(path)[0].lower() in _ABOUT_THE_DATA
    return not hidden and not about and path.is_file() and file_format(path) is not None


def _local_source(name: str, root: Path, files: Sequence[Path], cache_dir: Path) -> Source:
    for path in files:
        if re.search("[\ud800-\udfff]", str(path.resolve())):
            raise ValueError(f"--data: the file name {str(path)!a} is not UTF-8: rename it")
    named: dict[str | None, list[Path]] = {}
    for path in sorted(files, key=lambda path: path.relative_to(root).as_posix()):
        named.setdefault(_named_split(path.relative_to(root)), []).append(path)
    rest = named.pop(None, [])
    if rest and "train" not in named:
        named["train"], rest = rest, []
    chosen = {split: named[split] for split in SPLITS if split in named}
    left_out = rest + _drop_other_forms(chosen)

    hashes = _hash_files([path for paths in chosen.values() for path in paths], cache_dir)
    listing = [
        {"split": split, "file": path.name, "format": file_format(path), "sha256": hashes[path]}
        for split, paths in chosen.items()
        for path in paths
    ]
    identity = [(entry["split"], entry["format"], entry["sha256"]) for entry in listing]
    notes = [f"{name}: {', '.join(_describe(*item) for item in chosen.items())}"]
    if left_out:
        notes.append("left out: " + ", ".join(path.name for path in left_out))
    return Source(
        name=re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "text",
        fingerprint=hashlib.sha256(f"local {_LAYOUT} {identity}".encode()).hexdigest(),
        splits={split: partial(_read, paths) for split, paths in chosen.items()},
        sizes={split: _size(paths) for split, paths in chosen.items()},
        notes=tuple(notes),
        details={"kind": "files", "files": listing},
    )


def _named_split(relative: Path) -> str | None:
    """The split in a path's name: a word of the file's name, else of the nearest folder's."""
    for part in (split_suffix(relative)[0], *reversed(relative.parts[:-1])):
        words = list(_SPLIT_WORD.finditer(part.lower()))
        if words:
            assert words[-1].lastindex is not None
            return SPLITS[words[-1].lastindex - 1]
    return None


def _drop_other_forms(chosen: dict[str, list[Path]]) -> list[Path]:
    """Of a text in two forms (wiki.test.raw and wiki.test.tokens), keep the form of the training
    text and return the others: reading both would read the text twice."""
    suffixes = {split_suffix(path)[1] for path in chosen.get("train", [])}
    dropped = []
    for split, paths in chosen.items():
        forms: dict[Path, list[Path]] = {}
        for path in paths:
            forms.setdefault(path.parent / split_suffix(path)[0], []).append(path)
        for same in forms.values():
            kept = [path for path in same if split_suffix(path)[1] in suffixes]
            if len(same) > 1 and (len(kept) != 1 or split == "train"):
                pattern = same[0].parent / f"*{split_suffix(same[0])[1]}"
                raise ValueError(
                    f"--data: {' and '.join(map(str, same))} look like one text in two forms. "
                    f"Choose one with a pattern, such as --data '{pattern}'."
                )
            if len(same) > 1:
                dropped += [path for path in same if path not in kept]
        chosen[split] = [path for path in paths if path not in dropped]
    return dropped


def _size(paths: Sequence[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


def _describe(split: str, paths: Sequence[Path]) -> str:
    what = paths[0].name if len(paths) == 1 else f"{len(paths)} files"
    return f"{split} = {what} ({_size(paths) / 1e6:,.1f} MB)"


def _read(paths: Sequence[Path]) -> Iterator[Piece]:
    for path in paths:
        yield from read_pieces(path)


def _hash_files(paths: Sequence[Path], cache_dir: Path) -> dict[Path, str]:
    """The SHA-256 of each file, kept by path, size and time of change, so that a file of many
    gigabytes is not read at each start."""
    index = cache_dir / "checksums.json"
    known: dict[str, tuple[int, int, str]] = {}
    with suppress(ValueError):
        known = from_json(dict[str, tuple[int, int, str]], read_json(index))
    hashes = {}
    fresh = False
    for path in paths:
        stat = path.stat()
        if stat.st_size == 0:
            raise ValueError(f"{path} is empty: there is nothing to learn from")
        key, state = str(path.resolve()), (stat.st_size, stat.st_mtime_ns)
        entry = known.get(key)
        if not entry or entry[:2] != state:
            known[key] = entry = (*state, sha256_file(path))
            fresh = True
        hashes[path] = entry[2]
    if fresh:
        cache_dir.mkdir(parents=True, exist_ok=True)
        write_json(index, known)
    return hashes
