"""A preparation divided over processes and machines: its parts, their manifests, their merging.

Of n parts, part i makes every n-th shard, from the i-th on, and reads past the text of the others.
The text alone decides where shards begin and end. So no part need know how much text there is,
which a gzip file or a stream tells only at its end; shards have their final names from the start,
and those of n parts together are, byte for byte, those that one process makes; and costly text
(other languages, code) falls to all parts alike. Ranges of files or bytes could be skipped faster,
but to which split a document belongs is known only after reading everything before it, and reading
is cheap beside tokenising.

A part ends with its manifest, part-003-of-008.json beside the shards. It lists the shards made and
counts the text of all parts. From these manifests a merge knows, without reading the text, whether
anything is missing.
"""

import dataclasses
import re
import reprlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from gpt2.common.files import write_json
from gpt2.common.json_files import from_json, read_json_object
from gpt2.common.progress import progress_bar
from gpt2.data.documents import SPLITS
from gpt2.data.job import Job, Part
from gpt2.data.shards import (
    NO_TEXT,
    SHARD_NAME,
    Counts,
    ShardError,
    ShardInfo,
    shard_name,
    verify_shard,
)
from gpt2.data.tokenise import SplitShards
from gpt2.tokenizer import Tokenizer

_FORMAT = 1
_SPEC = re.compile(r"(\d{1,9})/(\d{1,9})", re.ASCII)
_NAME = re.compile(r"part-(\d{3}|[1-9]\d{3,8})-of-(\d{3}|[1-9]\d{3,8})\.json", re.ASCII)
_SHOWN = 8  # commands in a message, at most


def parse_part(spec: str) -> Part:
    """Parse `--shard I/N`, counted from 1; a ValueError if there is no such part."""
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
    """The content of a part's manifest."""

    part: int  # its number, counted from 1
    of: int  # how many parts there are
    fingerprint: str  # of the source
    tokenizer: str  # its hash
    held_out: str  # how splits were taken out of the training text, in words
    totals: Mapping[str, Counts]  # the text of each split, all parts together
    sha256: Mapping[str, str]  # of the ids of each shard that this part made, by file name

    def __post_init__(self) -> None:
        if not all(SHARD_NAME.fullmatch(name) for name in self.sha256):
            raise ValueError("not all shards have a shard's name")
        for split, counts in self.totals.items():
            if split not in SPLITS or min(vars(counts).values()) < 0 or not counts.shards:
                raise ValueError(f"totals of {split!r:.20}: {reprlib.repr(counts)}")


@dataclass(frozen=True)
class Parts:
    """The parts of one preparation, as their manifests tell."""

    job: Job  # all parts must be made from its source
    tokenizer: Tokenizer  # that all parts must be made with
    folder: Path  # of shards and manifests

    def path(self, part: Part) -> Path:
        """The manifest of a part."""
        return self.folder / f"part-{part.number:03d}-of-{part.of:03d}.json"

    def find(self) -> list[Part]:
        """The finished parts, in order."""
        matches = (_NAME.fullmatch(path.name) for path in self.folder.glob("part-*.json"))
        parts = [Part(int(match[1]), int(match[2])) for match in matches if match]
        parts = [part for part in parts if 1 <= part.number <= part.of]
        return sorted(parts, key=lambda part: (part.of, part.number))

    def remove_manifests(self) -> None:
        """Delete the manifests of all parts, which that of the finished folder replaces."""
        for part in self.find():
            self.path(part).unlink(missing_ok=True)

    def finish(self, part: Part, held_out: str, splits: Mapping[str, SplitShards]) -> None:
        """Declare a part finished: it made the shards in `splits`."""
        manifest = PartManifest(
            part.number,
            part.of,
            self.job.source.fingerprint,
            self.tokenizer.hash,
            held_out,
            {split: shards.counts for split, shards in splits.items()},
            {
                shard_name(split, number): info.sha256
                for split, shards in splits.items()
                for number, info in shards.made.items()
            },
        )
        write_json(self.path(part), {"format": _FORMAT, **dataclasses.asdict(manifest)})

    def is_done(self, part: Part) -> bool:
        """Return whether a part is finished and all its shards are still there and sound."""
        try:
            for name, sha256 in self._read(part).sha256.items():
                self._verify(name, sha256)
        except ValueError:
            return False
        return True

    def merge(self) -> tuple[str, dict[str, list[ShardInfo]]]:
        """Put the parts together and verify the checksum of every shard.

        Returns:
            How splits were taken out of the training text, and each split's shards in order.

        Raises:
            ValueError: a part is missing, damaged, or of another text, tokenizer or number of
                parts. Says which one, and what to do.
        """
        manifests: dict[Part, PartManifest] = {}
        for part in self._complete_set():
            try:
                manifests[part] = self._read(part)
            except ValueError as error:
                raise ValueError(
                    f"{self.path(part)} cannot be merged: {error}. Make this part again: "
                    f"{self._command(part)}"
                ) from error
        self._check_sum(manifests)
        makers = {name: part for part, manifest in manifests.items() for name in manifest.sha256}
        first = next(iter(manifests.values()))
        shards: dict[str, list[ShardInfo]] = {split: [] for split in first.totals}
        with progress_bar(self.job.progress, _names(first), "verifying", unit="shard") as bar:
            for split, name in bar:
                part = makers[name]
                try:
                    shards[split].append(self._verify(name, manifests[part].sha256[name]))
                except ShardError as error:
                    raise ShardError(
                        f"{self.folder / name}, which part {part} made, is missing or damaged. "
                        "Copy it again from where it was made, or make it again: "
                        f"{self._command(part)}"
                    ) from error
        for split, counts in first.totals.items():
            found = sum((info.counts for info in shards[split]), NO_TEXT)
            for key, count in vars(counts).items():
                if vars(found)[key] != count:
                    raise self._do_not_add_up(f"the {key} of the {split} split")
        return first.held_out, shards

    def _read(self, part: Part) -> PartManifest:
        """Read a part's manifest; a ValueError says why it is of no use."""
        try:
            content = read_json_object(self.path(part))
            if content.pop("format", None) != _FORMAT:
                raise ValueError(f"it has another format; this program reads {_FORMAT}")
            manifest = from_json(PartManifest, content)
        except ValueError as error:
            raise ValueError(f"it is damaged ({error})") from error
        if (manifest.part, manifest.of) != (part.number, part.of):
            raise ValueError(f"it is of part {manifest.part}/{manifest.of}, under another name")
        if manifest.fingerprint != self.job.source.fingerprint:
            raise ValueError(f"it is of another text ({manifest.fingerprint[:8]})")
        given, needed = manifest.tokenizer, self.tokenizer.hash
        if given != needed:
            raise ValueError(f"it was made with tokenizer {given[:8]}, not {needed[:8]}")
        if not set(self.job.source.splits) <= set(manifest.totals):
            raise ValueError(f"it has only the splits {', '.join(manifest.totals)}")
        return manifest

    def _verify(self, name: str, sha256: str) -> ShardInfo:
        """Check a shard that a manifest lists; raise `ShardError` when it is not that one."""
        info = verify_shard(self.folder / name)
        if (info.sha256, info.tokenizer_hash) != (sha256, self.tokenizer.hash):
            raise ShardError(f"token shard {self.folder / name} is not the one that its part lists")
        return info

    def _complete_set(self) -> list[Part]:
        """The finished parts; a ValueError if some are missing or their n differ."""
        parts, folder = self.find(), self.folder
        divisions = Counter(part.of for part in parts)
        if len(divisions) > 1:
            found = ", ".join(f"{n} part-*-of-{of:03d}.json" for of, n in divisions.items())
            raise ValueError(
                f"{folder} has parts of more than one number of parts: {found}. Delete those files "
                "but the ones of one number. The shards may stay: each fits any number of parts"
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
                f"{self._command('I/N')}, or copy there what other machines made.{hint}"
            )
        of = parts[0].of
        if len(parts) < of:
            missing = (part for i in range(1, of + 1) if (part := Part(i, of)) not in parts)
            commands = [self._command(part) for part in islice(missing, _SHOWN)]
            if more := of - len(parts) - len(commands):
                commands.append(f"and {more:,} more")
            raise ValueError(
                f"{folder} has {len(parts):,} of {of:,} parts.{hint} Copy there the part-*.json "
                "and *.bin of the others from where they were made, or make them:\n  "
                + "\n  ".join(commands)
            )
        return parts

    def _check_sum(self, manifests: Mapping[Part, PartManifest]) -> None:
        """Check that the manifests agree and together list each shard once."""
        first, *rest = manifests.values()
        for other in rest:
            if (other.totals, other.held_out) != (first.totals, first.held_out):
                raise self._do_not_add_up(
                    f"part {first.part} counted {first.totals}, part {other.part} {other.totals}"
                )
        listed = [name for manifest in manifests.values() for name in manifest.sha256]
        expected = sum(counts.shards for counts in first.totals.values())
        if len(listed) != expected or set(listed) != {name for _, name in _names(first)}:
            raise self._do_not_add_up(f"{len(listed):,} shards are listed, {expected:,} expected")

    def _command(self, part: Part | str) -> str:
        return self.job.command("--shard", str(part))

    def _do_not_add_up(self, what: str) -> ValueError:
        return ValueError(
            f"the parts in {self.folder} do not add up ({what}): they were made of other text, or "
            "by other versions of this program or its libraries. Delete the folder and make all "
            "parts again"
        )


def _names(manifest: PartManifest) -> list[tuple[str, str]]:
    """All shards of all parts as (split, file name), in order."""
    return [
        (split, shard_name(split, number))
        for split, counts in manifest.totals.items()
        for number in range(counts.shards)
    ]
