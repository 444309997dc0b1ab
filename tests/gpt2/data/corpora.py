"""Small corpora, files and documents, and a preparation that is killed at its n-th file."""

import gzip
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpt2.data.documents import Piece, Source
from gpt2.data.prepare import prepare
from gpt2.data.shares import finish, write_share
from gpt2.tokenizer import Tokenizer
from gpt2.tokenizer.bpe import END_OF_TEXT
from tests.gpt2.stand_ins import start_python

_KILLED = """
import os, signal, sys
from pathlib import Path
import gpt2.common.files
from gpt2.data.prepare import prepare
from gpt2.data.shares import write_share

what, at, data, tokenizer, cache_dir, shard_bytes = sys.argv[1], int(sys.argv[2]), *sys.argv[3:]
def killing(call):
    def killing(*names, **options):
        global at
        at -= not Path(names[-1]).name.startswith((".tok", "tok", "checksums"))
        if at == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        call(*names, **options)
    return killing
gpt2.common.files.os.replace = killing(os.replace)
options = dict(data=data, tokenizer=tokenizer, cache_dir=Path(cache_dir), progress=False)
options["shard_bytes"] = int(shard_bytes)
if what == "whole":
    prepare(**options)
else:
    write_share(".", options, None, int(what), 2)
"""
SHARD_BYTES = 1500


def stories(n: int) -> list[str]:
    things = ["dog", "red kite", "1,024 ants", "caf\u00e9", "\u732b", "old\n\nhouse"]
    texts = [f"Story {i}: the {things[i % 6]} met the {things[i % 5]}. " for i in range(n)]
    return [text * (i % 17 + 1) for i, text in enumerate(texts)]


def write_stories(path: Path, n: int) -> None:
    path.write_text(f"\n{END_OF_TEXT}\n".join(stories(n)), encoding="utf-8")


def all_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def flip(path: Path, offset: int) -> None:
    """Change a bit of a file."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


@dataclass(frozen=True)
class Place:
    """A corpus, a tokenizer and a cache folder."""

    data: Path
    tokenizer: Path
    cache_dir: Path
    shard_bytes: int = SHARD_BYTES

    @property
    def options(self) -> dict[str, Any]:
        options = {"tokenizer": str(self.tokenizer), "cache_dir": self.cache_dir}
        return {**options, "progress": False, "shard_bytes": self.shard_bytes}

    @property
    def folder(self) -> Path:
        """The folder at work, or finished."""
        hash8 = Tokenizer.load(self.tokenizer).hash[:8]
        (folder,) = self.cache_dir.glob(f"{self.data.stem}-*-{hash8}")
        return folder

    def share(self, number: int, of: int) -> None:
        write_share(".", {"data": str(self.data), **self.options}, None, number, of)

    def finish(self, of: int) -> dict[str, bytes]:
        finish(".", {"data": str(self.data), **self.options}, of)
        return all_files(self.folder)

    def prepare(self) -> dict[str, bytes]:
        return all_files(prepare(str(self.data), **self.options).folder)

    def alone(self) -> dict[str, bytes]:
        """What one process makes, elsewhere."""
        return replace(self, cache_dir=self.cache_dir.with_name("alone")).prepare()

    def start(self, what: object, at: int = 1 << 30) -> subprocess.Popen[str]:
        """Start a process that makes the "whole", or share 0 or 1 of 2, and kills itself when it
        renames its n-th file, those of the tokenizer and of checksums aside."""
        places = (self.data, self.tokenizer, self.cache_dir, self.shard_bytes)
        return start_python("-c", _KILLED, *map(str, (what, at, *places)))

    def kill(self, what: object, at: int) -> None:
        """`start` a process and wait for its death."""
        process = self.start(what, at)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, errors

    def times(self) -> dict[str, int]:
        """When each shard and share was written."""
        paths = [*self.folder.glob("*.bin"), *self.folder.glob("*/*.npz")]
        return {path.name: path.stat().st_mtime_ns for path in paths}


def joined(pieces: Iterator[Piece]) -> list[str]:
    """The documents that pieces make up."""
    texts = [""]
    for piece in pieces:
        texts[-1] += piece.text
        if piece.last:
            texts.append("")
    assert texts.pop() == "", "the last document has no end"
    return texts


def write(path: Path, content: str | bytes) -> Path:
    data = content.encode("utf-8") if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


def texts_of(source: Source) -> dict[str, list[str]]:
    return {split: joined(read()) for split, read in source.splits.items()}
