"""Valid files made wrong: in their bytes, in their meaning, or by something else in their place."""

import gzip
import io
import json
import math
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


Entry = bytes | Link | None  # None: a folder in place of a file
Files = dict[str, Entry]
"""The content of a folder, by path in it."""


class Damaged(Files):
    """Files of which some were made wrong; only these are printed."""

    def __init__(self, valid: dict[str, bytes]) -> None:
        super().__init__(valid)
        self.valid = valid

    def __repr__(self) -> str:
        words = [f"{name} is missing" for name in self.valid if name not in self]
        for name, entry in self.items():
            if entry is None:
                words.append(f"{name}: a folder")
            elif entry != self.valid.get(name):
                rest = f" ({len(entry):,} bytes)" if isinstance(entry, bytes) else ""
                words.append(f"{name}: {entry!r:.300}{rest}")
        return "\n".join(["files", *words])


_NUMBERS = (0, 1, 2, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**60, 2**63, 2**64 - 1)
_NUMBERS_AS_BYTES = [
    (number & ((1 << 8 * size) - 1)).to_bytes(size, order)
    for number in _NUMBERS
    for size in (1, 2, 4, 8)
    for order in ("little", "big")
]
_NEW_BYTES = st.one_of(
    st.binary(max_size=8),
    st.sampled_from(_NUMBERS_AS_BYTES),
    st.text(max_size=8).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.binary(min_size=1, max_size=8).map(lambda some: some * 1000),
)
_DEEP = 2 * sys.getrecursionlimit()
# Spelled out when the document is written: json.dumps gives none of them.
_NESTED = "[" * _DEEP + "]" * _DEEP
_RAW = {"\ue000nested": _NESTED, "\ue000digits": "9" * 5000, "\ue000huge": "1e999"}
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 0.5, 1e308, math.nan, math.inf, -math.inf, *_NUMBERS,
    -(2**63) - 1, 10**30, 10**400, "", "x", "0", "nan", "../../x", "..", "/x", "a\0b",
    "\ud800", "\x1b[2J", "<|endoftext|>", [], {}, [[]], [None], [0, 1], {"": None}, *_RAW,
)  # fmt: skip
_LARGEST = 1 << 20  # bytes of a line that is made longer
# What is raised when an earlier change has left no meaning in a file.
_NO_MEANING = (
    ValueError, struct.error, OSError, EOFError, zipfile.BadZipFile, zlib.error, RecursionError,
)  # fmt: skip
# Where the fields begin in the header of a token shard (gpt2/data/shards.py), and its first id.
_SHARD_FIELDS = (8, 12, 16, 24, 32, 40, 48, 56, 120, 256)


@st.composite
def hostile(draw, files, *, reseal=None):
    """Draw valid files with one or two of them made wrong, and in some examples resealed."""
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
        result[name] = Link(draw(st.sampled_from(["/dev/null", "..", "nowhere", "itself"])))
    else:
        result[name] = None


def changed_content(draw: Draw, name: str, content: bytes) -> bytes:
    """Change a file's content by what its name says that it is, or as mere bytes."""
    changes = [change for suffix, change in _BY_MEANING.items() if name.endswith(suffix)]
    if changes and draw(st.integers(0, 3)):
        try:
            return changes[0](draw, content)
        except _NO_MEANING:
            pass
    return changed_bytes(draw, content)


def changed_bytes(draw: Draw, content: bytes) -> bytes:
    """Insert, overwrite, delete or cut off bytes."""
    at = draw(st.integers(0, len(content)))
    new = draw(_NEW_BYTES)
    replaced = draw(st.sampled_from([len(new), len(new), 0, 1, 64, len(content)]))
    return content[:at] + new + content[at + replaced :]


def changed_json(draw: Draw, content: bytes) -> bytes:
    """Change a document that stays JSON, most of the time."""
    document = json.loads(content)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        document = _changed_value(draw, document)
    text = json.dumps(document)
    for marker, spelled in _RAW.items():
        text = text.replace(json.dumps(marker), spelled)
    return text.encode()


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
    """Change, double, lengthen or leave out a line."""
    lines = content.split(b"\n")
    at, to = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
    how = draw(st.sampled_from(["change", "json", "delete", "double", "lengthen"]))
    if how == "change":
        lines[at] = changed_bytes(draw, lines[at])
    elif how == "json":
        lines[at] = changed_json(draw, lines[at])
    elif how == "delete":
        del lines[at]
    elif how == "double":
        lines.insert(to, lines[at])
    else:
        times = draw(st.sampled_from([100, 5000]))
        lines[at] *= min(times, _LARGEST // (len(lines[at]) + 1))
    return b"\n".join(lines)


def changed_safetensors(draw: Draw, content: bytes) -> bytes:
    """Change the header, which is JSON; put its length right, or to a number of any size."""
    (length,) = struct.unpack_from("<Q", content)
    header = changed_json(draw, content[8 : 8 + length])
    said = draw(st.sampled_from([len(header)] * 8 + list(_NUMBERS)))
    return struct.pack("<Q", said) + header + content[8 + length :]


def changed_shard(draw: Draw, content: bytes) -> bytes:
    """Set a field of the header of a token shard, or its first id, to a number of any size."""
    at, new = draw(st.sampled_from(_SHARD_FIELDS)), draw(st.sampled_from(_NUMBERS_AS_BYTES))
    return content[:at] + new + content[at + len(new) :]


def changed_zip(draw: Draw, content: bytes) -> bytes:
    """Change or rename a member of a zip archive, or pack them all; the archive stays whole."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = draw(st.sampled_from(sorted(members)))
    data = changed_bytes(draw, members.pop(name))
    members[draw(st.sampled_from([name, name, name, "../../x", "/x", name + "x"]))] = data
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
