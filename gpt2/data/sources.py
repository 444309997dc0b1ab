"""The sources that `--data` may name: built-in corpora and local files, of text or of token ids.

Files named for a split (train, valid, test) are that split; all others are training text.
"""

import glob
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal

from gpt2.common.files import sha256_file, write_json
from gpt2.common.json_files import from_json, read_json, read_json_object
from gpt2.data.documents import SPLITS, Source
from gpt2.data.hub import HUB_DATASETS, hub_source
from gpt2.data.python_docs import python_docs
from gpt2.data.readers import (
    FORMATS,
    PACKINGS,
    TOKEN_FORMATS,
    file_format,
    read_pieces,
    split_suffix,
)
from gpt2.data.snapshots import LeftOut, hub_splits, newest_revision

BUILT_IN = ("python-docs", *HUB_DATASETS)

_LAYOUT = "2"  # part of the fingerprint: change it when files are cut into documents otherwise
_SPLIT_WORD = re.compile(
    r"(?<![a-z])(?:(train|training)|(valid|validation|val|dev)|(test|testing|eval|evaluation))"
    r"(?![a-z])"
)
_ABOUT_THE_DATA = {"readme", "license", "licence", "notice", "copying", "changelog"}
_OF_DATASETS = {"dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json"}
_KINDS = (
    f"Usable are {', '.join(FORMATS)}; all but .parquet and .arrow also as {', '.join(PACKINGS)}; "
    f"and files of token ids, {', '.join(TOKEN_FORMATS)}."
)
_ONE_OF = re.compile(r"(.*)-\d{5}-of-(\d{5})(.*)")
_NAMED = 8  # files that were left out, by name


def open_source(data: str, *, cache_dir: Path) -> Source:
    """Open the source that `data` names.

    Args:
        data: one of `BUILT_IN`, or the path of a file or folder, or a glob pattern.
        cache_dir: folder that keeps the checksums of files and the revisions of hub data sets.

    Raises:
        ValueError: there is nothing, or nothing that can be read; says what was looked for.
    """
    path = _tokens_of_index(Path(data).expanduser())
    if data == "python-docs":
        return python_docs()
    if data in HUB_DATASETS:
        return hub_source(data, cache_dir=cache_dir)
    if path.is_file():
        if file_format(path) is None:
            raise ValueError(
                f"--data {data}: no known kind of file ({path.suffix or 'no suffix'}). {_KINDS}"
            )
        return _local_source(
            split_suffix(path)[0], _splits_by_name(path.parent, [path], []), [], [], cache_dir
        )
    if path.is_dir():
        path = newest_revision(path)
        shown = [file for file in sorted(path.rglob("*")) if _is_shown(file, path)]
        left_out: list[LeftOut] = []
        files = _sort_out(shown, "a link to a folder or to nothing", left_out, Path.is_file)
        for choose in (_without_descriptions, _listed_by_datasets, _known_kinds):
            files = choose(path, files, left_out)
        if not files:
            raise ValueError(
                f"--data {data}: no file in this folder can be used{_in_words(left_out)}. {_KINDS}"
            )
        notes: list[str] = []
        splits = None
        if not _holds_tokens(files[0]):
            splits = hub_splits(path, files, left_out, notes, _named_split)
        if splits is None:
            splits = _splits_by_name(path, files, left_out)
        return _local_source(path.resolve().name, splits, left_out, notes, cache_dir)
    if glob.has_magic(data):
        found = [Path(file) for file in glob.glob(str(path), recursive=True)]
        left_out = []
        files = _known_kinds(path, sorted(file for file in found if file.is_file()), left_out)
        if not files:
            raise ValueError(f"--data {data}: the pattern matches no file to use. {_KINDS}")
        root = Path(os.path.commonpath([file.parent for file in files]))
        splits = _splits_by_name(root, files, left_out)
        return _local_source(root.resolve().name or "text", splits, left_out, [], cache_dir)
    raise ValueError(
        f"--data {data}: no such file or folder, and none of the built-in names "
        f"({', '.join(BUILT_IN)})."
    )


def _is_shown(path: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    return not hidden and (path.is_file() or path.is_symlink())


def _sort_out(
    files: Iterable[Path], reason: str, left_out: list[LeftOut], keep: Callable[[Path], bool]
) -> list[Path]:
    """The files that `keep` is true for; the others go to `left_out`."""
    kept = []
    for path in files:
        if keep(path):
            kept.append(path)
        else:
            left_out.append((path, reason))
    return kept


def _without_descriptions(root: Path, files: list[Path], left_out: list[LeftOut]) -> list[Path]:
    """Leave out what is about the data; what `datasets` writes beside it is read elsewhere."""
    about = [path for path in files if path.name not in _OF_DATASETS]
    return _sort_out(
        about, "about the data", left_out,
        lambda path: split_suffix(path)[0].lower() not in _ABOUT_THE_DATA,
    )  # fmt: skip


def _tokens_of_index(path: Path) -> Path:
    """The file of ids where its index is named, or what Megatron names: both without suffix."""
    if path.suffix == ".idx" or not path.exists():
        ids = path.with_suffix(".bin") if path.suffix == ".idx" else Path(f"{path}.bin")
        return ids if ids.with_suffix(".idx").is_file() and ids.is_file() else path
    return path


def _known_kinds(root: Path, files: list[Path], left_out: list[LeftOut]) -> list[Path]:
    """The files of text, or where there are none, of token ids."""
    known = _sort_out(
        [path for path in files if not _describes_tokens(path)],
        "of no kind that is read",
        left_out,
        lambda path: file_format(path) is not None,
    )
    own = [path for path in known if path.suffix == ".npy"]
    names = {path.with_suffix(".csv.gz") for path in own}
    known = _sort_out(known, "places of documents", left_out, lambda path: path not in names)
    if all(_holds_tokens(path) for path in known):
        return known
    return _sort_out(known, "token ids beside text", left_out, lambda path: not _holds_tokens(path))


def _holds_tokens(path: Path) -> bool:
    return file_format(path) in TOKEN_FORMATS.values()


def _describes_tokens(path: Path) -> bool:
    """Tell whether a file is read together with one of token ids."""
    if path.name == "index.json":
        return any(path.parent.glob("*.bin"))
    if path.suffix in (".index", ".metadata"):
        return path.with_suffix("").suffix == ".ds"
    return path.suffix == ".idx" and path.with_suffix(".bin").is_file()


def _listed_by_datasets(root: Path, files: list[Path], left_out: list[LeftOut]) -> list[Path]:
    """Of a folder that `datasets` saved, the files that its state.json lists, and of one of its
    cache all but cache-*.arrow: those hold what its operations made, mostly the same text again."""
    listed: dict[Path, set[str]] = {}
    for folder in {path.parent for path in files}:
        own = {path.name for path in files if path.parent == folder}
        if not (folder / "dataset_info.json").is_file():
            continue
        if not (folder / "state.json").is_file():
            listed[folder] = {n for n in own if not re.fullmatch(r"cache-.*\.arrow", n)}
        else:
            entries = read_json_object(folder / "state.json").get("_data_files")
            try:
                names = from_json(list[dict[Literal["filename"], str]], entries)
                listed[folder] = {entry["filename"] for entry in names}
            except (ValueError, KeyError) as error:
                raise ValueError(f"{folder}/state.json is none of datasets: {error}") from error
    return _sort_out(
        files, "kept by an operation of datasets", left_out,
        lambda path: path.parent not in listed or path.name in listed[path.parent],
    )  # fmt: skip


def _local_source(
    name: str,
    chosen: dict[str, list[Path]],
    left_out: list[LeftOut],
    notes: list[str],
    cache_dir: Path,
) -> Source:
    """The source of the files of each split, with `notes`, and one of what is left out."""
    for path in (path for paths in chosen.values() for path in paths):
        if re.search("[\ud800-\udfff]", str(path.resolve())):
            raise ValueError(f"--data: the file name {str(path)!a} is not UTF-8: rename it")
    left_out += [(path, "the same text in another form") for path in _drop_other_forms(chosen)]
    notes = [*notes, *_missing(chosen)]

    hashes = _hash_files([path for paths in chosen.values() for path in paths], cache_dir)
    for split, paths in chosen.items():
        first: dict[str, Path] = {}
        for path in paths:
            if first.setdefault(hashes[path], path) != path:
                left_out.append((path, f"the same as {first[hashes[path]].name}"))
        chosen[split] = list(first.values())
    listing = [
        {"split": split, "file": path.name, "format": file_format(path), "sha256": hashes[path]}
        for split, paths in chosen.items()
        for path in paths
    ]
    identity = [(entry["split"], entry["format"], entry["sha256"]) for entry in listing]
    notes = [f"{name}: {', '.join(_describe(*item) for item in chosen.items())}", *notes]
    if left_out:
        notes.append(_in_words(left_out).removeprefix("; "))
    tokens = _holds_tokens(next(iter(chosen.values()))[0])
    return Source(
        name=re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "text",
        fingerprint=hashlib.sha256(f"local {_LAYOUT} {identity}".encode()).hexdigest(),
        splits={s: partial(read_pieces, *paths) for s, paths in chosen.items() if not tokens},
        sizes={split: _size(paths) for split, paths in chosen.items()},
        notes=tuple(notes),
        details={"kind": "tokens" if tokens else "files", "files": listing},
        token_files=chosen if tokens else {},
    )


def _missing(chosen: dict[str, list[Path]]) -> list[str]:
    """Say of which files, numbered as x-00000-of-00005, only some are here."""
    matches = [_ONE_OF.fullmatch(str(path)) for paths in chosen.values() for path in paths]
    sets = Counter(match.group(1, 2, 3) for match in matches if match)
    return [
        f"of the {int(total):,} files {Path(stem).name}-*-of-{total}{rest}, {here:,} are here"
        for (stem, total, rest), here in sets.items()
        if here < int(total)
    ]


def _in_words(left_out: list[LeftOut]) -> str:
    """Say what was not read, and why: "; left out: a.pdf, b.pdf (of no kind that is read)"."""
    by_reason: dict[str, list[str]] = {}
    for path, reason in left_out:
        by_reason.setdefault(reason, []).append(path.name)
    parts = []
    for reason, names in by_reason.items():
        more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
        parts.append(f"{', '.join(names[:_NAMED])}{more} ({reason})")
    return f"; left out: {'; '.join(parts)}" if parts else ""


def _splits_by_name(
    root: Path, files: Sequence[Path], left_out: list[LeftOut]
) -> dict[str, list[Path]]:
    """Sort files into splits by their names and those of their folders."""
    named: dict[str | None, list[Path]] = {}
    for path in sorted(files, key=lambda path: path.relative_to(root).as_posix()):
        named.setdefault(_named_split(path.relative_to(root)), []).append(path)
    rest = named.pop(None, [])
    if rest and "train" not in named:
        named["train"], rest = rest, []
    left_out += [(path, "not named for a split, as others are") for path in rest]
    for split, paths in named.items():
        own = [path for path in paths if _SPLIT_WORD.search(split_suffix(path)[0].lower())]
        forms = {file_format(path): path for path in own}
        if len(forms) > 1:
            raise ValueError(
                f"--data: {' and '.join(map(str, forms.values()))} look like the {split} split in "
                "two forms. Choose one with a pattern, such as --data "
                f"'{root}/**/*{split_suffix(own[0])[1]}'."
            )
    return {split: named[split] for split in SPLITS if split in named}


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
