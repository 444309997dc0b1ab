"""Valid files made wrong: in their bytes, in their meaning, or by something else in their place."""

import gzip
import io
import json
import math
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]


@dataclass(frozen=True)
class Link:
    """A symbolic link in place of a file."""

    to: str


@dataclass(frozen=True)
class Folder:
    """A folder in place of a file."""


Entry = bytes | Link | Folder
Files = dict[str, Entry]
"""The content of a folder, by path in it."""


class Damaged(Files):
    """Files of which some were made wrong; only these are printed.

    Args:
        valid: the files as they were.
    """

    def __init__(self, valid: dict[str, bytes]) -> None:
        super().__init__(valid)
        self.valid = valid

    def __repr__(self) -> str:
        words = [f"{name} is missing" for name in self.valid if name not in self]
        for name, entry in self.items():
            if entry != self.valid.get(name):
                rest = f" ({len(entry):,} bytes)" if isinstance(entry, bytes) else ""
                words.append(f"{name}: {entry!r:.300}{rest}")
        return "\n".join(["files", *words])


_NUMBERS = (0, 1, 2, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**60, 2**63, 2**64 - 1)
_DEEP = 2 * sys.getrecursionlimit()
# Spelled out when the document is written: json.dumps gives none of them.
_RAW = {
    "\ue000nested": "[" * _DEEP + "]" * _DEEP,
    "\ue000digits": "9" * 5000,
    "\ue000huge": "1e999",
}
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 0.5, 1e308, math.nan, math.inf, -math.inf, *_NUMBERS,
    -(2**63) - 1, 10**30, 10**400, "", "x", "0", "nan", "../../x", "..", "/x", "a\0b",
    "\ud800", "\x1b[2J", "<|endoftext|>", [], {}, [[]], [None], [0, 1], {"": None}, *_RAW,
)  # fmt: skip
_RAW_SPELLED = {json.dumps(marker): text for marker, text in _RAW.items()}
_RAW_PATTERN = re.compile("|".join(map(re.escape, _RAW_SPELLED)))
_LARGEST = 1 << 20  # bytes of a line that is made longer
_LINKS = ("/dev/null", "..", "nowhere", "itself")
# What is raised when an earlier change has left no meaning in a file.
_NO_MEANING = (
    ValueError, struct.error, OSError, EOFError, zipfile.BadZipFile, zlib.error, RecursionError,
)  # fmt: skip
_SHARD_HEADER = struct.Struct("<8sIIQQQQQ64s32s")  # as gpt2/data/shards.py has it


@st.composite
def hostile(
    draw: Draw, files: dict[str, bytes], *, reseal: Callable[[Files], None] | None = None
) -> Files:
    """Draw the files with one or two of them made wrong.

    Args:
        files: valid.
        reseal: puts checksums right, as an attacker would; done to some of the examples.
    """

    result = Damaged(files)
    for _ in range(draw(st.sampled_from([1, 1, 2]))):
        _change_entry(draw, result, draw(st.sampled_from(sorted(files))), files)
    if reseal and draw(st.booleans()):
        reseal(result)
    return result


def _change_entry(draw: Draw, result: Files, name: str, files: dict[str, bytes]) -> None:
    content = result.get(name)
    how = draw(st.sampled_from(["content"] * 12 + ["missing", "other", "link", "folder"]))
    if how == "content" and isinstance(content, bytes):
        result[name] = changed_content(draw, name, content)
    elif how == "missing":
        result.pop(name, None)
    elif how == "other":
        result[name] = files[draw(st.sampled_from(sorted(files)))]
    elif how == "link":
        result[name] = Link(draw(st.sampled_from(_LINKS)))
    else:
        result[name] = Folder()


def changed_content(draw: Draw, name: str, content: bytes) -> bytes:
    """Change a file's content by what its name says that it is, or as mere bytes."""
    if draw(st.integers(0, 3)) == 0:
        return changed_bytes(draw, content)
    by_meaning = next(
        (change for suffix, change in _BY_MEANING.items() if name.endswith(suffix)), changed_bytes
    )
    try:
        return by_meaning(draw, content)
    except _NO_MEANING:
        return changed_bytes(draw, content)


def changed_bytes(draw: Draw, content: bytes) -> bytes:
    """Cut, flip, overwrite, repeat, ..."""
    at = draw(st.integers(0, len(content)))
    end = min(len(content), at + draw(st.sampled_from([1, 2, 4, 8, 64, 4096])))
    how = draw(st.sampled_from(["cut", "flip", "number", "insert", "delete", "again", "new"]))
    if how == "cut":
        return content[:at]
    if how == "flip":
        bits = bytes(1 << draw(st.integers(0, 7)) ^ byte for byte in content[at : at + 1])
        return content[:at] + bits + content[at + 1 :]
    if how == "number":
        size, order = draw(st.sampled_from([1, 2, 4, 8])), draw(st.sampled_from(["little", "big"]))
        number = draw(st.sampled_from(_NUMBERS)) & ((1 << 8 * size) - 1)
        return content[:at] + number.to_bytes(size, order) + content[at + size :]
    if how == "insert":
        inserted = draw(st.binary(min_size=1, max_size=8)) * draw(st.sampled_from([1, 1, 1000]))
        return content[:at] + inserted + content[at:]
    if how == "delete":
        return content[:at] + content[end:]
    if how == "again":
        return content[:end] + content[at:]
    return draw(st.binary(max_size=64))


def changed_json(draw: Draw, content: bytes) -> bytes:
    """Change a document that stays JSON, most of the time."""
    document = json.loads(content)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        document = _changed_value(draw, document)
    text = json.dumps(document)
    return _RAW_PATTERN.sub(lambda found: _RAW_SPELLED[found[0]], text).encode()


def _changed_value(draw: Draw, value: Any) -> Any:
    if not isinstance(value, (dict, list)) or not value or draw(st.integers(0, 5)) == 0:
        return draw(st.sampled_from(_VALUES))
    changed: Any = value.copy()
    key = draw(st.sampled_from(list(value) if isinstance(value, dict) else range(len(value))))
    how = draw(st.sampled_from(["deeper"] * 5 + ["delete", "copy"]))
    if how == "deeper":
        changed[key] = _changed_value(draw, value[key])
    elif how == "delete":
        del changed[key]
    elif isinstance(value, dict):
        changed[draw(st.sampled_from(["", "x", "../x", "\ud800", "step"]))] = value[key]
    else:
        changed.insert(key, value[key])
    return changed


def changed_lines(draw: Draw, content: bytes) -> bytes:
    """Change, move, double or leave out a line."""
    lines = content.split(b"\n")
    at, to = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
    how = draw(st.sampled_from(["change", "json", "delete", "again", "swap", "long", "text"]))
    if how == "change":
        lines[at] = changed_bytes(draw, lines[at])
    elif how == "json":
        lines[at] = changed_json(draw, lines[at])
    elif how == "delete":
        del lines[at]
    elif how == "again":
        lines.insert(to, lines[at])
    elif how == "swap":
        lines[at], lines[to] = lines[to], lines[at]
    elif how == "long":
        times = draw(st.sampled_from([100, 5000]))
        lines[at] *= min(times, _LARGEST // (len(lines[at]) + 1))
    else:
        lines[at] = draw(st.text(max_size=16)).encode("utf-8", "surrogatepass")
    return b"\n".join(lines)


def changed_safetensors(draw: Draw, content: bytes) -> bytes:
    """Change the header, which is JSON; put its length right, or to a number of any size."""
    (length,) = struct.unpack_from("<Q", content)
    header = changed_json(draw, content[8 : 8 + length])
    said = draw(st.sampled_from([len(header)] * 8 + list(_NUMBERS)))
    return struct.pack("<Q", said) + header + content[8 + length :]


def changed_shard(draw: Draw, content: bytes) -> bytes:
    """Set a field of the header of a token shard, or an id, to a number of any size."""
    fields = list(_SHARD_HEADER.unpack_from(content))
    at = draw(st.integers(1, len(fields)))
    number = draw(st.sampled_from(_NUMBERS))
    if at == len(fields):
        ids = struct.pack("<H", number & 0xFFFF)
        place = draw(st.integers(0, (len(content) - 256) // 2 - 1)) * 2 + 256
        return content[:place] + ids + content[place + 2 :]
    old = fields[at]
    fields[at] = draw(st.binary(max_size=64)) if isinstance(old, bytes) else number
    if at in (1, 2):
        fields[at] &= 0xFFFFFFFF
    return _SHARD_HEADER.pack(*fields) + content[_SHARD_HEADER.size :]


def changed_zip(draw: Draw, content: bytes) -> bytes:
    """Change, pack or rename a member of a zip archive, which stays whole."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = draw(st.sampled_from(sorted(members)))
    how = draw(st.sampled_from(["change", "change", "change", "delete", "rename"]))
    if how == "change":
        members[name] = changed_bytes(draw, members[name])
    elif how == "delete":
        del members[name]
    else:
        members[draw(st.sampled_from(["../../x", "/x", "x", name + "x"]))] = members.pop(name)
    packed = io.BytesIO()
    kind = draw(st.sampled_from([zipfile.ZIP_STORED] * 3 + [zipfile.ZIP_DEFLATED]))
    with zipfile.ZipFile(packed, "w", kind) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return packed.getvalue()


def changed_gzip(draw: Draw, content: bytes) -> bytes:
    """Change the packed content, pack it in two members, or put something behind them."""
    plain = changed_lines(draw, gzip.decompress(content))
    at = draw(st.integers(0, len(plain)))
    members = gzip.compress(plain[:at], mtime=0) + gzip.compress(plain[at:], mtime=0)
    behind = draw(st.sampled_from([b"", b"", b"\0" * 100, b"behind", gzip.compress(b"")[:-4]]))
    return members + behind


_BY_MEANING: dict[str, Callable[[Draw, bytes], bytes]] = {
    ".json": changed_json,
    ".jsonl": changed_lines,
    ".txt": changed_lines,
    ".bpe": changed_lines,
    ".gz": changed_gzip,
    ".safetensors": changed_safetensors,
    "model.bin": changed_zip,
    "-00000.bin": changed_shard,
    "-00001.bin": changed_shard,
}
