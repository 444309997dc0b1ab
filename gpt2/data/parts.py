"""A preparation divided over processes and machines: its parts, and what each says of itself.

What is divided is shards. Of n parts, part i makes every n-th shard, from the i-th on, and reads
past the text of the others. Where a shard begins and ends depends on the text alone, so

- a part need not know how much text there is: a gzip file or a stream tells only at its end;
- shards have their final names from the start, and those of n parts together are, byte for byte,
  those that one process makes: a merge moves nothing, and shards of another n are as good;
- costly and cheap text (other languages, code) fall to all parts alike.

Ranges of files or bytes would be skipped faster, but which split a document belongs to, and where
in a gzip file it begins, is known only after reading all before it. Reading is cheap beside
tokenising with tiktoken.

A part ends with its manifest, part-003-of-008.json beside the shards: those it made, and how much
text went by in all. From these manifests a merge (gpt2/data/parts.py) sees, without a look at the
text, that nothing is missing.
"""

import dataclasses
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from gpt2.common.files import write_json
from gpt2.common.json_files import from_json, read_json_object
from gpt2.data.documents import SPLITS, Source
from gpt2.data.shards import SHARD_NAME, ShardError, ShardInfo, shard_name, verify_shard
from gpt2.data.splits import SplitPlan
from gpt2.data.tokenise import Part, SplitShards
from gpt2.tokenizer import Tokenizer

_FORMAT = 1
_SPEC = re.compile(r"(\d{1,9})/(\d{1,9})", re.ASCII)
_NAME = re.compile(r"part-(\d{3}|[1-9]\d{3,8})-of-(\d{3}|[1-9]\d{3,8})\.json", re.ASCII)
COUNTS = ("shards", "pieces", "documents", "text_bytes")


def parse_part(spec: str) -> Part:
    """The part that `--shard I/N` names, counted from 1.

    Raises:
        ValueError: it names none.
    """
    match = _SPEC.fullmatch(spec)
    number, of = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= of:
        raise ValueError(
            f"--shard {spec} names no part: give I/N with I from 1 to N, such as 3/8 for the third "
            "of 8"
        )
    return Part(number, of)


@dataclass(frozen=True)
class PartManifest:
    """What a part made, and of what.

    Attributes:
        part, of: its number, and how many there are.
        fingerprint: of the source.
        tokenizer: the tokenizer's hash.
        held_out: how splits were taken out of the training text, in words.
        totals: for each split the "shards", "pieces", "documents" and "text_bytes" that it has, of
            all parts.
        sha256: of the ids of each shard that this part made, by file name.
    """

    part: int
    of: int
    fingerprint: str
    tokenizer: str
    held_out: str
    totals: Mapping[str, Mapping[str, int]]
    sha256: Mapping[str, str]


def write_part(
    folder: Path,
    part: Part,
    source: Source,
    plan: SplitPlan,
    tokenizer: Tokenizer,
    splits: Mapping[str, SplitShards],
) -> None:
    """Declare a part finished, which made the shards in `splits`."""
    manifest = PartManifest(
        part.number,
        part.of,
        source.fingerprint,
        tokenizer.hash,
        plan.note,
        {split: {key: getattr(work, key) for key in COUNTS} for split, work in splits.items()},
        {
            shard_name(split, number): info.sha256
            for split, work in splits.items()
            for number, info in work.made.items()
        },
    )
    write_json(folder / part_name(part), {"format": _FORMAT, **dataclasses.asdict(manifest)})


def part_is_done(folder: Path, part: Part, source: Source, tokenizer: Tokenizer) -> bool:
    """Whether a part is finished, and all that it made is still there and sound."""
    if not (folder / part_name(part)).exists():
        return False
    try:
        manifest = read_part(folder, part, source, tokenizer)
        for name, sha256 in manifest.sha256.items():
            verify_listed(folder / name, sha256, tokenizer)
    except ValueError:
        return False
    return True


def count_parts(folder: Path, of: int) -> int:
    """How many of `of` parts are finished."""
    return sum(part.of == of for part in find_parts(folder))


def remove_part_manifests(folder: Path) -> None:
    """Delete what has become useless with the manifest of a finished folder."""
    for part in find_parts(folder):
        (folder / part_name(part)).unlink(missing_ok=True)


def part_name(part: Part) -> str:
    """The file name of a part's manifest."""
    return f"part-{part.number:03d}-of-{part.of:03d}.json"


def find_parts(folder: Path) -> list[Part]:
    """The parts whose manifests lie in a folder, in order."""
    matches = (_NAME.fullmatch(path.name) for path in folder.glob("part-*.json"))
    parts = [Part(int(match[1]), int(match[2])) for match in matches if match]
    parts = [part for part in parts if 1 <= part.number <= part.of]
    return sorted(parts, key=lambda part: (part.of, part.number))


def verify_listed(path: Path, sha256: str, tokenizer: Tokenizer) -> ShardInfo:
    """Check a shard that a part's manifest lists; raise `ShardError` when it is not that one."""
    info = verify_shard(path)
    if (info.sha256, info.tokenizer_hash) != (sha256, tokenizer.hash):
        raise ShardError(f"token shard {path} is not the one that its part lists")
    return info


def read_part(folder: Path, part: Part, source: Source, tokenizer: Tokenizer) -> PartManifest:
    """Read a part's manifest; a ValueError says why it is of no use."""
    try:
        content = read_json_object(folder / part_name(part))
        if content.pop("format", None) != _FORMAT:
            raise ValueError(f"it has another format; this program reads {_FORMAT}")
        manifest = from_json(PartManifest, content)
        _check_names(manifest)
    except ValueError as error:
        raise ValueError(f"it is damaged ({error})") from error
    if (manifest.part, manifest.of) != (part.number, part.of):
        raise ValueError(f"it is of part {manifest.part}/{manifest.of}, under another name")
    if manifest.fingerprint != source.fingerprint:
        raise ValueError(f"it is of another text ({manifest.fingerprint[:8]})")
    if manifest.tokenizer != tokenizer.hash:
        raise ValueError(
            f"it was made with tokenizer {manifest.tokenizer[:8]}, not {tokenizer.hash[:8]}"
        )
    if not set(source.splits) <= set(manifest.totals):
        raise ValueError(f"it has only the splits {', '.join(manifest.totals)}")
    return manifest


def _check_names(manifest: PartManifest) -> None:
    if not all(SHARD_NAME.fullmatch(name) for name in manifest.sha256):
        raise ValueError("not all shards have a shard's name")
    for split, counts in manifest.totals.items():
        known = split in SPLITS and set(counts) == set(COUNTS)
        if not (known and min(counts.values()) >= 0 and counts["shards"]):
            raise ValueError(f"totals of {split!r:.20}: {reprlib.repr(counts)}")


_SHOWN = 8  # commands in a message, at most


def merge_parts(
    folder: Path,
    source: Source,
    tokenizer: Tokenizer,
    *,
    command: Callable[..., str],
    progress: bool,
) -> tuple[SplitPlan, dict[str, list[ShardInfo]]]:
    """What the parts in `folder` add up to, every shard's checksum compared.

    Args:
        folder: holds shards and part manifests.
        source: what they must have been made of.
        tokenizer: what they must have been made with.
        command: the command line of the preparation with these words added, for messages.
        progress: show a progress bar.

    Returns:
        How the splits came about (in words only), and the shards of each, in order.

    Raises:
        ValueError: a part is missing, damaged, or of another text, tokenizer or number of parts;
            says which one, and what to do.
    """
    parts = _complete_set(folder, command)
    manifests: dict[Part, PartManifest] = {}
    for part in parts:
        try:
            manifests[part] = read_part(folder, part, source, tokenizer)
        except ValueError as error:
            raise ValueError(
                f"{folder / part_name(part)} cannot be merged: {error}. Make this part again: "
                f"{command('--shard', str(part))}"
            ) from error
    names, makers = _shard_makers(folder, manifests)
    first = manifests[parts[0]]
    shards: dict[str, list[ShardInfo]] = {split: [] for split in first.totals}
    with tqdm(names, desc="verifying", unit="shard", disable=not progress) as bar:
        for split, name in bar:
            part = makers[name]
            try:
                info = verify_listed(folder / name, manifests[part].sha256[name], tokenizer)
            except ShardError as error:
                raise ShardError(
                    f"{folder / name}, which part {part} made, is missing or damaged. Copy it "
                    f"again from where it was made, or make it again: "
                    f"{command('--shard', str(part))}"
                ) from error
            shards[split].append(info)
    for split, infos in shards.items():
        for key in COUNTS[1:]:
            if sum(getattr(info, key) for info in infos) != first.totals[split][key]:
                raise _do_not_add_up(folder, f"the {key} of the {split} split")
    return SplitPlan(note=first.held_out), shards


def _complete_set(folder: Path, command: Callable[..., str]) -> list[Part]:
    """The parts in a folder, which must be all of one n."""
    parts = find_parts(folder)
    divisions = Counter(part.of for part in parts)
    if len(divisions) > 1:
        found = ", ".join(f"{n} part-*-of-{of:03d}.json" for of, n in divisions.items())
        raise ValueError(
            f"{folder} has parts of more than one number of parts: {found}. Delete those files but "
            "the ones of one number. The shards may stay: each fits any number of parts"
        )
    prefix = folder.name.rpartition("-")[0]
    others = {path.parent.name for path in folder.parent.glob(f"{prefix}-*/part-*.json")}
    others.discard(folder.name)
    hint = ""
    if others:
        hint = f" Parts made with another tokenizer do not count: {', '.join(sorted(others))}."
    if not parts:
        raise ValueError(
            f"{folder} has no part-*.json to merge. Make parts with: "
            f"{command('--shard', 'I/N')}, or copy there what other machines made.{hint}"
        )
    of = parts[0].of
    if len(parts) < of:
        have = set(parts)
        missing = (part for part in (Part(i + 1, of) for i in range(of)) if part not in have)
        commands = [command("--shard", str(part)) for part in islice(missing, _SHOWN)]
        more = of - len(parts) - len(commands)
        if more:
            commands.append(f"and {more:,} more")
        raise ValueError(
            f"{folder} has {len(parts):,} of {of:,} parts.{hint} Copy there the part-*.json and "
            "*.bin of the others from where they were made, or make them:\n  "
            + "\n  ".join(commands)
        )
    return parts


def _shard_makers(
    folder: Path, manifests: Mapping[Part, PartManifest]
) -> tuple[list[tuple[str, str]], dict[str, Part]]:
    """All shards, (split, file name) in order, and who made each; none may be missing or double."""
    first, *rest = manifests.values()
    for other in rest:
        if (other.totals, other.held_out) != (first.totals, first.held_out):
            what = f"part {first.part} counted {first.totals}, part {other.part} {other.totals}"
            raise _do_not_add_up(folder, what)
    makers = {name: part for part, manifest in manifests.items() for name in manifest.sha256}
    listed = sum(len(manifest.sha256) for manifest in manifests.values())
    expected = sum(counts["shards"] for counts in first.totals.values())
    if not listed == expected == len(makers):
        raise _do_not_add_up(folder, f"{listed:,} shards are listed, {expected:,} expected")
    names = [
        (split, shard_name(split, number))
        for split, counts in first.totals.items()
        for number in range(counts["shards"])
    ]
    if {name for _, name in names} != makers.keys():
        raise _do_not_add_up(folder, "shards are missing")
    return names, makers


def _do_not_add_up(folder: Path, what: str) -> ValueError:
    return ValueError(
        f"the parts in {folder} do not add up ({what}): they were made of other text, or by other "
        "versions of this program or its libraries. Delete the folder and make all parts again"
    )
