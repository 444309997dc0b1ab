"""gpt2.data.datatrove: n shares make the very bytes that gpt2.data.prepare makes."""

import gzip
import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gpt2.data import datatrove, documents, readers, shares
from gpt2.data.datatrove import Arguments, main
from gpt2.data.prepare import prepare
from tests.gpt2.data.corpora import SHARD_BYTES, Place, all_files, flip, stories, write_stories


def by_document(folder: Path) -> Path:
    """Held out by document, from files of three formats, one of them gzipped."""
    write_stories(folder / "a.txt", 50)
    rows = [json.dumps({"text": text}) + "\n" for text in stories(120)[50:]]
    (folder / "b.jsonl").write_text("".join(rows[:40]))
    (folder / "c.jsonl.gz").write_bytes(gzip.compress("".join(rows[40:]).encode(), mtime=0))
    return folder


def by_position(folder: Path) -> Path:
    """One book, cut by position; its pieces are of different shares."""
    text = "".join(f"Line {i}  of\ta caf\u00e9 \n\n book.\n" for i in range(3_000))
    (folder / "book.txt").write_text(text, encoding="utf-8")
    return folder


def by_name(folder: Path) -> Path:
    """Splits named by files, two of them for training."""
    for i, name in enumerate(("train-1", "train-2", "valid", "test")):
        write_stories(folder / f"{name}.txt", 3 * i + 1)
    return folder


@pytest.fixture
def place(tmp_path, tokenizer_file):
    (tmp_path / "corpus").mkdir()
    return Place(by_document(tmp_path / "corpus"), tokenizer_file, tmp_path / "cache")


@pytest.mark.parametrize(
    ("write", "of"), [(by_document, 3), (by_position, 2), (by_position, 7), (by_name, 3)]
)  # 7: some cut by position are within a piece
def test_shares_together_are_byte_for_byte_what_one_process_makes(
    tmp_path, tokenizer_file, monkeypatch, write, of
):
    """And the text is not read again when they are put together."""
    if write is by_position:  # of several pieces
        monkeypatch.setattr(documents, "PIECE_CHARS", 1 << 12)
        monkeypatch.setattr(readers, "PIECE_CHARS", 1 << 12)
    (tmp_path / "text").mkdir()
    size = 20_000 if write is by_position else SHARD_BYTES
    place = Place(write(tmp_path / "text"), tokenizer_file, tmp_path / "cache", size)
    alone = place.alone()
    assert len(alone) > 4
    for number in reversed(range(of)):
        place.share(number, of)
    assert len(place.times()) == of
    for path in place.data.iterdir():
        stat = path.stat()
        path.write_bytes(b"\xff" * stat.st_size)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert place.finish(of) == alone
    assert not list(place.folder.glob("*/*.npz"))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_killed_and_damaged_shares_are_made_again_and_the_others_kept(place, monkeypatch):
    place.kill(0, 1)
    assert list(place.folder.glob("*/.*.tmp"))  # the share at work
    assert not place.times()
    place.share(1, 2)
    assert place.finish(2) == place.alone()
    shutil.rmtree(place.folder)
    for share in range(3):
        place.share(share, 3)
    kept = place.times()
    (damaged,) = place.folder.glob("*/00001.npz")
    flip(damaged, damaged.stat().st_size // 2)
    made = []
    write = shares._write
    monkeypatch.setattr(shares, "_write", lambda *given: (made.append(given[-2]), write(*given)))
    assert len(kept) == 3
    assert place.finish(3) == place.alone()
    assert made == [1]


def test_a_task_of_the_local_executor_that_failed_is_made_again(place, monkeypatch, capsys):
    """By the command as it is typed; with no tokenizer, one is trained before the tasks begin."""
    pytest.importorskip("datatrove")
    monkeypatch.setattr(datatrove, "available_cores", lambda: 1)  # in this process
    monkeypatch.chdir(place.data.parent)
    asked = Arguments(place.data.name, vocab_size=300, cache_dir=Path("cache"), tasks=3)
    write, failed = datatrove.write_share, []

    def fail_once(folder: str, options: object, data: object, share: int, of: int) -> None:
        if share == 1 and not failed:
            failed.append(share)
            raise OSError("the disk is full")
        write(folder, options, data, share, of)

    monkeypatch.setattr(datatrove, "write_share", fail_once)
    with pytest.raises(OSError, match="the disk is full"):
        main(asked, shard_bytes=SHARD_BYTES)
    (tokenizer,) = Path("cache/tokenizers").glob("*/tokenizer.json")
    trained = replace(place, tokenizer=tokenizer.resolve())
    assert trained.times().keys() == {"00000.npz"}
    main(asked, shard_bytes=SHARD_BYTES)
    said = capsys.readouterr().out
    assert "3 tasks and the last one are done: " in said
    assert all_files(trained.folder) == trained.alone()
    main(asked, shard_bytes=SHARD_BYTES)
    assert "is finished: there is nothing left to do" in capsys.readouterr().out
    prepared = prepare(place.data.name, vocab_size=300, cache_dir=Path("cache"), progress=False)
    assert any(note.startswith("reused") for note in prepared.notes)


def test_slurm_is_given_a_job_for_the_tasks_and_one_after_them(place, monkeypatch):
    """A stand-in for sbatch keeps the scripts that it is given."""
    pytest.importorskip("datatrove")
    monkeypatch.chdir(place.data.parent)
    sbatch = Path("bin/sbatch")
    sbatch.parent.mkdir()
    sbatch.write_text(
        '#!/bin/sh\nfor last; do :; done; { echo "$@"; cat "$last"; } >> jobs\n'
        "echo Submitted batch job 7\n"
    )
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", str(sbatch.parent.resolve()), prepend=os.pathsep)
    main(Arguments(place.data.name, str(place.tokenizer), executor="slurm", partition="cpu"))
    jobs = Path("jobs").read_text()
    assert "#SBATCH --partition=cpu\n" in jobs
    assert "#SBATCH --array=0-63" in jobs
    assert "afterok:7" in jobs
    assert f" PYTHONPATH={datatrove._ROOT}:$PYTHONPATH" in jobs


def test_what_cannot_be_run_is_refused(place, monkeypatch, tmp_path):
    asked = Arguments(str(place.data), str(place.tokenizer), cache_dir=tmp_path / "none")
    with monkeypatch.context() as absent:
        absent.setitem(sys.modules, "datatrove.executor", None)
        with pytest.raises(ValueError, match=r"pip install -e '\.\[datatrove\]'"):
            main(asked)
    pytest.importorskip("datatrove")
    with pytest.raises(ValueError, match="the name of a partition: --partition NAME"):
        main(replace(asked, executor="slurm"))
    ids = tmp_path / "train.bin"
    ids.write_bytes(b"\1\0" * 99)
    with pytest.raises(ValueError, match="holds token ids: there is nothing to tokenise"):
        main(replace(asked, data=str(ids)))
    assert not list((tmp_path / "none").glob("*/*"))
