"""gpt2.data.prepare --shard and --merge: n parts make the very bytes that one process makes."""

import functools
import gzip
import json
import re
import shlex
import shutil
import signal
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import tyro

from gpt2.data import documents
from gpt2.data import prepare as prepare_module
from gpt2.data.documents import SPLITS
from gpt2.data.job import Job
from gpt2.data.prepare import Arguments, main, merge, prepare
from gpt2.data.shards import HEADER_BYTES, Counts, ShardError
from gpt2.tokenizer import Tokenizer
from tests.gpt2.data.corpora import SHARD_BYTES, Place, all_files, flip, stories, write_stories
from tests.gpt2.stand_ins import start_python


def by_document(folder: Path) -> Path:
    """Held out by document, from files of three formats, one of them gzipped."""
    write_stories(folder / "a.txt", 50)
    rows = [json.dumps({"text": text}) + "\n" for text in stories(120)[50:]]
    (folder / "b.jsonl").write_text("".join(rows[:40]))
    (folder / "c.jsonl.gz").write_bytes(gzip.compress("".join(rows[40:]).encode(), mtime=0))
    return folder


def by_position(folder: Path) -> Path:
    """One book, cut by position; its pieces are of different parts."""
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
    ("write", "of"),
    [
        *((by_document, of) for of in (1, 2, 3)),
        *((by_position, of) for of in (2, 7)),  # 7: some have no shard to make
        *((by_name, of) for of in (3, 15)),
    ],
)
def test_parts_merged_are_byte_for_byte_what_one_process_makes(
    tmp_path, tokenizer_file, monkeypatch, write, of
):
    if write is by_position:  # of several pieces
        monkeypatch.setattr(documents, "PIECE_CHARS", 1 << 12)
    (tmp_path / "text").mkdir()
    size = 20_000 if write is by_position else SHARD_BYTES
    place = Place(write(tmp_path / "text"), tokenizer_file, tmp_path / "cache", size)
    for number in [*range(of, 0, -2), *range(of - 1, 0, -2)]:
        place.make(number, of)
    parts = place.folder.glob("part-*.json")
    made = [len(json.loads(path.read_text())["sha256"]) for path in parts]
    assert len(made) == of
    assert max(made) - min(made) <= 1  # each does its share
    assert place.merge() == place.alone()
    assert len(place.times()) == sum(made) > 3
    assert min(made) == 0 or of < 7
    reused = prepare(str(place.data), **place.options)
    assert f"reused {place.folder}" in reused.notes


def test_parts_of_two_machines_are_merged_when_copied_together(tmp_path, place):
    for number in (1, 2):
        text = tmp_path / f"machine-{number}" / "corpus"
        shutil.copytree(place.data, text)
        there = replace(place, data=text, cache_dir=text.with_name("cache"))
        there.make(number, 2)
        here = place.cache_dir / there.folder.name
        here.mkdir(parents=True, exist_ok=True)
        for path in [*there.folder.glob("*.bin"), *there.folder.glob("part-*.json")]:
            assert not (here / path.name).exists()
            shutil.copy(path, here)
    assert place.merge() == place.alone()


def test_processes_in_one_folder_train_one_tokenizer_and_end_in_a_merge(place):
    """As a user starts them: at once, with no tokenizer."""
    own = {"cache_dir": place.cache_dir, "vocab_size": 300, "progress": False}
    words = ["-m", "gpt2.data.prepare", "--data", str(place.data), "--vocab-size", "300"]
    words += ["--cache-dir", str(place.cache_dir), "--shard"]
    processes = [start_python(*words, f"{i}/2") for i in (1, 2)]
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert sum("trained in" in output for output, _ in said) == 1
    merged = merge(Job(str(place.data), **own))
    assert any("merged in" in note for note in merged.notes)
    alone = prepare(str(place.data), **own | {"cache_dir": place.cache_dir / "alone"})
    assert all_files(merged.folder) == all_files(alone.folder)


# Interruption


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_killed_parts_and_merges_lose_no_shard(place):
    kept: dict[str, int] = {}
    for part, at in ((1, 4), (1, 2)):
        place.kill(part, at)
        assert list(place.folder.glob(".*.tmp"))  # the shard at work
        assert not list(place.folder.glob("part-*.json"))
        assert kept.items() < place.times().items()
        kept = place.times()
    assert len(kept) == 3 + 1
    for number in (1, 2):
        place.make(number, 2)
    assert len(list(place.folder.glob("part-*.json"))) == 2
    for at in (1, 2, 2):  # at the manifest, then at each part's
        place.kill("merge", at)
    assert place.merge() == place.alone()
    assert kept.items() < place.times().items()


def test_a_part_that_is_done_reads_no_text_and_one_that_is_damaged_is_mended(place, monkeypatch):
    place.make(1, 2)
    before = all_files(place.folder)
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "write_splits", None)
        assert any("already" in note for note in place.make(1, 2))
    shard = next(place.folder.glob("train-*.bin"))
    for damage in (
        Path.unlink,
        lambda path: flip(path, HEADER_BYTES + 7),
        lambda path: flip(path.with_name("part-001-of-002.json"), 40),
    ):
        damage(shard)
        place.make(1, 2)
        assert all_files(place.folder) == before


def test_an_ordinary_preparation_takes_up_what_parts_have_made(place):
    place.make(2, 3)
    kept = place.times()
    alone = place.alone()
    assert place.prepare() == alone
    assert kept.items() < place.times().items()
    assert any("finished" in note for note in place.make(1, 3))
    assert all_files(place.folder) == alone


def test_shards_that_were_cut_otherwise_are_refused(place):
    replace(place, shard_bytes=700).make(1, 2)
    with pytest.raises(ShardError, match=r"train-00000\.bin .* holds other text .*Delete the fold"):
        place.prepare()


# Several at once


def test_a_part_is_made_by_one_process_beside_the_others_and_merged_when_it_ends(
    place, monkeypatch
):
    write_splits = prepare_module.write_splits
    waits = threading.Event()
    monkeypatch.setattr("gpt2.common.files.print", lambda *_, **__: waits.set(), raising=False)
    merged: list[dict[str, bytes]] = []
    merging = threading.Thread(target=lambda: merged.append(place.merge()), daemon=True)

    def while_the_first_is_made(*arguments: Any) -> Any:
        if arguments[-1].number == 1:
            with pytest.raises(ValueError, match="--shard 1/2: another process is making this pa"):
                place.make(1, 2)
            place.make(2, 2)
            merging.start()
            assert waits.wait(timeout=60)
        return write_splits(*arguments)

    monkeypatch.setattr(prepare_module, "write_splits", while_the_first_is_made)
    place.make(1, 2)
    merging.join(timeout=60)
    monkeypatch.undo()
    assert merged == [place.alone()]


# Mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(
            ({"shard": spec}, f"--shard {spec} names no part: give I/N")
            for spec in ("5/4", "0/4", "x", "3", "-1/4", "1/0", "1/2/3", "1 / 2", "", "\u0663/8")
        ),
        ({"shard": "1/4", "merge": True}, "give --shard or --merge"),
        ({"merge": True, "verify": True}, "no --verify"),
        ({"merge": True}, "--merge needs the tokenizer of the parts"),
    ],
)
def test_the_command_refuses_what_makes_no_sense(place, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        main(Arguments(data=str(place.data), cache_dir=place.cache_dir, **options))


def test_missing_parts_are_named_with_the_commands_that_make_them(place, monkeypatch):
    place.make(2, 4)
    for name in ("part-005-of-004.json", "part-0001-of-004.json", "part-000-of-000.json"):
        (place.folder / name).touch()
    with pytest.raises(ValueError, match=r"has 1 of 4 parts") as caught:
        place.merge()
    commands = [line for line in str(caught.value).splitlines() if "--shard" in line]
    assert [command.split()[-1] for command in commands] == ["1/4", "3/4", "4/4"]
    for command in commands:
        python, m, name, *words = shlex.split(command)
        assert (python, m, name) == ("python", "-m", "gpt2.data.prepare")
        with monkeypatch.context() as patch:
            patch.setattr(prepare_module, "Job", functools.partial(Job, shard_bytes=SHARD_BYTES))
            main(tyro.cli(Arguments, args=words))
    assert place.alone().items() <= place.merge().items()


def test_parts_of_another_tokenizer_or_number_are_never_used(tmp_path, place):
    Tokenizer.train(stories(60), 300).save(tmp_path / "other.json")
    other = replace(place, tokenizer=tmp_path / "other.json")
    with pytest.raises(ValueError, match=r"has no part-\*\.json to merge.* --shard I/N"):
        place.merge()
    place.make(1, 2)
    other.make(2, 2)
    there = other.folder
    with pytest.raises(ValueError, match=rf"1 of 2 parts.* another tokenizer .*: {there.name}\."):
        place.merge()
    for path in [*there.glob("*.bin"), *there.glob("part-*")]:
        shutil.copy(path, place.folder)
    with pytest.raises(ValueError, match=r"part-002.* tokenizer \w{8}, not \w{8}.*--shard 2/2"):
        place.merge()
    place.make(1, 3)
    with pytest.raises(ValueError, match=r"2 part-\*-of-002\.json, 1 part-\*-of-003\.json. Delete"):
        place.merge()
    (place.folder / "part-001-of-003.json").unlink()
    place.make(2, 2)
    assert place.merge() == place.alone()
    there.joinpath("part-002-of-002.json").unlink()
    other.make(2, 999_999_999)
    with pytest.raises(ValueError, match=r"has 1 of 999,999,999 parts") as caught:
        other.merge()
    assert str(caught.value).endswith("--shard 9/999999999\n  and 999,999,990 more")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: next(folder.glob("train-*.bin")).unlink(), r"part [12]/2 made, is missing"),
        (lambda folder: flip(next(folder.glob("test-*.bin")), -1), r"part [12]/2 made, is missing"),
        (
            lambda folder: flip(next(folder.glob("valid-*.bin")), 32),  # its header's documents
            r"do not add up \(the documents of the valid split\)",
        ),
        ("{", "part-002-of-002.json cannot be merged: it is damaged.*--shard 2/2"),
        ({"part": 1}, "it is of part 1/2, under another name"),
        ({"format": 2}, "another format; this program reads 1"),
        ({"fingerprint": "ab" * 32}, r"it is of another text \(abababab\)"),
        ({"tokenizer": 5}, "damaged"),
        ({"sha256": {"../train-00000.bin": "00"}}, "damaged"),
        ({"totals": {}}, "it has only the splits"),
        ({"totals": {"train": {"shards": 10**12}}}, "damaged"),
        (
            {"totals": dict.fromkeys(SPLITS, asdict(Counts(1, 1, 1, 1)))},
            r"do not add up \(part 1 counted .*Delete the folder",
        ),
        ({"held_out": "nothing"}, r"do not add up \(part 1 counted .*Delete the folder"),
        ({"sha256": {}}, r"do not add up \(\d+ shards are listed, \d+ expected\)"),
    ],
)
def test_a_damaged_part_is_named(place, damage, message):
    for number in (1, 2):
        place.make(number, 2)
    manifest = place.folder / "part-002-of-002.json"
    if callable(damage):
        damage(place.folder)
    elif isinstance(damage, dict):
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | damage))
    else:
        manifest.write_text(damage)
    with pytest.raises(ValueError, match=message):
        place.merge()
    assert not (place.folder / "manifest.json").exists()
    if "add up" in message:
        shutil.rmtree(place.folder)
    for number in (1, 2):
        place.make(number, 2)
    place.merge()
