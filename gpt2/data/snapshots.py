"""A snapshot of a data set of the Hugging Face hub on disk, read as that data set.

The card, README.md, may name configurations and the files of each split; one configuration is read.
Without that, Parquet files in data/ named as the hub names them are the data set, and what else
lies there is left out: mostly the same text in another form.

Source: https://huggingface.co/docs/hub/datasets-manual-configuration
"""

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2.data.documents import SPLITS

LeftOut = tuple[Path, str]  # a file that is not read, and why

_SHARD = re.compile(r"(?P<split>[a-z]+)-\d{5}-of-\d{5}(-[0-9a-f]+)?\.[a-z.]+")
_OURS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "valid"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_MEND = "mend it, or give the files by a pattern, such as --data 'folder/*.parquet'"


@dataclass(frozen=True)
class Configuration:
    """A configuration of a data set: the patterns of the files of each split."""

    name: str
    splits: Mapping[str | None, tuple[str, ...]]  # None: as the files are named
    default: bool


def newest_revision(folder: Path) -> Path:
    """The newest snapshot in a folder of the hub's cache, datasets--owner--name; others as given.

    Raises:
        ValueError: there are several, and no branch main says which is the newest.
    """
    snapshots = folder / "snapshots"
    if not (folder / "refs").is_dir() or not snapshots.is_dir():
        return folder
    main = folder / "refs" / "main"
    if main.is_file():
        return snapshots / main.read_text(encoding="ascii").strip()
    revisions = sorted(snapshots.iterdir())
    if len(revisions) != 1:
        raise _several(folder, {path.name: path for path in revisions})
    return revisions[0]


def hub_splits(
    root: Path,
    files: Sequence[Path],
    left_out: list[LeftOut],
    notes: list[str],
    named_split: Callable[[Path], str | None],
) -> dict[str, list[Path]] | None:
    """Sort the files of a snapshot into splits; None where the folder is none.

    Args:
        root: the folder.
        files: in it, of a kind that can be read.
        left_out: gets what is not read, and why.
        notes: get a line that says what was chosen.
        named_split: the split that a path in the folder is named for.

    Raises:
        ValueError: a card that cannot be read, or several data sets; says how to choose one.
    """
    configurations = read_card(root)
    if configurations:
        chosen = _choose(root, configurations, files)
        return _of_configuration(root, chosen, files, left_out, notes, named_split)
    shards = [path for path in files if _split_of_shard(path)]
    if any(path.parent == root / "data" for path in shards):
        notes.append("a snapshot of the hub: its data set is the files of data/")
        splits: dict[str, list[Path]] = {}
        for path in files:
            split = _split_of_shard(path) if path.parent == root / "data" else None
            if split is None:
                left_out.append((path, "not a split of the data set in data/"))
            else:
                splits.setdefault(split, []).append(path)
        return {split: sorted(splits[split]) for split in SPLITS if split in splits}
    _check_one(root, files, named_split)
    return None


def _check_one(
    root: Path, files: Sequence[Path], named_split: Callable[[Path], str | None]
) -> None:
    """Refuse folders side by side that each have splits of their own, or shards of one name: the
    configurations of a data set, whose test texts are mostly among the others' training texts."""
    splits: dict[Path, set[str | None]] = {}
    shards: dict[str, set[Path]] = {}
    for path in files:
        relative = path.relative_to(root)
        folder = root / relative.parts[0] if len(relative.parts) > 1 else root
        if split := named_split(relative):
            splits.setdefault(folder, set()).add(split)
        if _split_of_shard(path):
            shards.setdefault(path.name, set()).add(path.parent)
    whole = {folder for folder, names in splits.items() if len(names) > 1}
    several = max([whole, *shards.values()], key=len)
    if len(several) > 1:
        raise _several(root, {path.name: path for path in sorted(several)})


def _split_of_shard(path: Path) -> str | None:
    match = _SHARD.fullmatch(path.name)
    return _OURS.get(match["split"]) if match else None


def read_card(root: Path) -> list[Configuration]:
    """Read the configurations that the card of a data set names; none where there is no card.

    Raises:
        ValueError: the card cannot be read.
    """
    card = root / "README.md"
    if not card.is_file():
        return []
    text = card.read_text(encoding="utf-8-sig", errors="replace").replace("\r\n", "\n")
    head = re.match(r"---\n(.*?\n)---(\n|$)", text, flags=re.DOTALL)
    if head is None or not re.search(r"^configs:", head[1], flags=re.MULTILINE):
        return []
    try:
        import yaml
    except ImportError as error:
        raise ValueError(f"reading {card} needs PyYAML: pip install -e '.[hub]'") from error
    try:
        entries = yaml.safe_load(head[1])["configs"]
        return [_configuration(entry) for entry in entries]
    except (yaml.YAMLError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{card} names configurations that cannot be read ({error!r:.200}): {_MEND}"
        ) from error


def _configuration(entry: Mapping[str, Any]) -> Configuration:
    files = entry.get("data_files")
    if files is None:
        files = [{"split": None, "path": f"{entry.get('data_dir') or '.'}/**"}]
    elif isinstance(files, dict):
        files = [{"split": split, "path": path} for split, path in files.items()]
    elif isinstance(files, str) or all(isinstance(one, str) for one in files):
        files = [{"split": "train", "path": files}]
    splits = {}
    for one in files:
        paths = [one["path"]] if isinstance(one["path"], str) else one["path"]
        splits[one["split"] and str(one["split"])] = tuple(map(str, paths))
    name = str(entry["config_name"])
    return Configuration(name, splits, bool(entry.get("default")) or name == "default")


def _matching(root: Path, patterns: Sequence[str], files: Sequence[Path]) -> list[Path]:
    found: set[Path] = set()
    for pattern in patterns:
        plain = pattern.removeprefix("./").rstrip("/")
        if plain.endswith("**") or (root / plain).is_dir():
            plain = plain.removesuffix("**").rstrip("/") + "/**/*"
        try:
            found |= set(root.glob(plain.lstrip("/")))
        except (ValueError, NotImplementedError) as error:
            raise ValueError(
                f"{root}/README.md: {pattern!r:.100} is no pattern of files: {_MEND}"
            ) from error
    return [path for path in files if path in found]


def _choose(
    root: Path, configurations: Sequence[Configuration], files: Sequence[Path]
) -> Configuration:
    default = [one for one in configurations if one.default]
    if len(configurations) == 1 or len(default) == 1:
        return (default or [*configurations])[0]
    found = []
    for one in configurations:
        patterns = [pattern for own in one.splits.values() for pattern in own]
        if own := _matching(root, patterns, files):
            found.append((one.name, root / patterns[0], own))
    folders = [own[0].parent for _, _, own in found]
    places = {
        name: own[0] if len(own) == 1 else pattern if folders.count(folder) > 1 else folder
        for (name, pattern, own), folder in zip(found, folders, strict=True)
    }
    if len(places) == 1:  # what was fetched of the repository
        return next(one for one in configurations if one.name in places)
    raise _several(root, places)


def _several(root: Path, places: Mapping[str, Path]) -> ValueError:
    choices = "; ".join(
        f"--data {shlex.quote(str(path if path != root else root / '*'))} ({name})"
        for name, path in list(places.items())[:8]
    )
    return ValueError(
        f"--data {root} holds {len(places)} data sets, or configurations of one, which may have "
        f"the same texts. Choose one: {choices}; or all by a pattern: --data '{root}/**/*'"
    )


def _of_configuration(
    root: Path,
    chosen: Configuration,
    files: Sequence[Path],
    left_out: list[LeftOut],
    notes: list[str],
    named_split: Callable[[Path], str | None],
) -> dict[str, list[Path]]:
    splits: dict[str, list[Path]] = {}
    for name, patterns in chosen.splits.items():
        for path in _matching(root, patterns, files):
            split = (
                _OURS.get(name)
                if name is not None
                else named_split(path.relative_to(root)) or "train"
            )
            if split is None:
                left_out.append((path, f"of the split {name}"))
            else:
                splits.setdefault(split, []).append(path)
    named = {path for own in splits.values() for path in own} | {path for path, _ in left_out}
    reason = f"not of the configuration {chosen.name}"
    left_out += [(path, reason) for path in files if path not in named]
    if not splits:
        others = [path for path, why in left_out if why.startswith("of the split ")]
        problem = (
            f"has no split train, valid or test: give files by a pattern, such as {others[0]}"
            if others
            else "has no file here that can be read: fetch it, or give other files by a pattern"
        )
        raise ValueError(
            f"--data {root}: the configuration {chosen.name}, which its README.md names, {problem}"
        )
    notes.append(f"a snapshot of the hub: its configuration {chosen.name}, as README.md names it")
    return {split: splits[split] for split in SPLITS if split in splits}
