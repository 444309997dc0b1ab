"""The merge: from the parts of a preparation to the shards of a finished folder.

The shards have their final names, and the parts' manifests (see gpt2/data/parts.py) say how many
there must be. So nothing is moved, and no text is read; the checksum of every shard is compared.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from gpt2.data.documents import Source
from gpt2.data.parts import (
    COUNTS,
    PartManifest,
    find_parts,
    part_name,
    read_part,
    verify_listed,
)
from gpt2.data.shards import ShardError, ShardInfo, shard_name
from gpt2.data.splits import SplitPlan
from gpt2.data.tokenise import Part
from gpt2.tokenizer import Tokenizer

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
