"""Small corpora, and a preparation that is killed at its n-th file, for the tests of both."""

import signal
import subprocess
from pathlib import Path

from gpt2.tokenizer.bpe import END_OF_TEXT
from tests.gpt2.stand_ins import start_python

_KILLED = """
import os, signal, sys
from pathlib import Path
import gpt2.common.files
from gpt2.data.job import Job, Part
from gpt2.data.prepare import merge, prepare, prepare_part

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
Path.unlink = killing(Path.unlink)
options = dict(tokenizer=tokenizer, cache_dir=Path(cache_dir), progress=False)
options["shard_bytes"] = int(shard_bytes)
if what == "whole":
    prepare(data, **options)
elif what == "merge":
    merge(Job(data, **options))
else:
    prepare_part(Job(data, **options), Part(int(what), 2))
"""
NEVER = 1 << 30


def stories(n: int) -> list[str]:
    things = ["dog", "red kite", "1,024 ants", "caf\u00e9", "\u732b", "old\n\nhouse"]
    return [
        f"Story {i}: the {things[i % 6]} met the {things[i % 5]}. " * (i % 17 + 1) for i in range(n)
    ]


def write_stories(path: Path, n: int) -> None:
    path.write_text(f"\n{END_OF_TEXT}\n".join(stories(n)), encoding="utf-8")


def all_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def flip(path: Path, offset: int) -> None:
    """Change a bit of a file."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def start(
    what: object, at: int, data: Path, tokenizer: Path, cache_dir: Path, shard_bytes: int
) -> subprocess.Popen[str]:
    """Start a process that makes the "whole", part 1 or 2 of 2, or a "merge", and kills itself when
    it renames or deletes its n-th file, those of the tokenizer and of checksums aside."""
    words = map(str, (what, at, data, tokenizer, cache_dir, shard_bytes))
    return start_python("-c", _KILLED, *words)


def kill(*words: object) -> None:
    """`start` a process and wait for its death."""
    process = start(*words)  # type: ignore[arg-type]
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, errors
