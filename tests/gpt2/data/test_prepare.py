"""gpt2.data.prepare: text to shards once, whole or resumable, and the same every time."""

import gzip
import json
import os
import re
import shutil
import signal
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt2.data import job, manifest
from gpt2.data.documents import END_OF_TEXT
from gpt2.data.prepare import Prepared, prepare
from gpt2.data.shards import HEADER_BYTES, ShardError, TokenStream
from gpt2.tokenizer import Tokenizer
from tests.gpt2.data.corpora import Place, all_files, flip, stories, write_stories
from tests.gpt2.stand_ins import run_forked, run_python


@pytest.fixture
def corpus(tmp_path):
    """200 stories in one file."""
    path = tmp_path / "stories.txt"
    write_stories(path, 200)
    return path


@pytest.fixture
def options(tmp_path, tokenizer_file):
    cache_dir = tmp_path / "cache"
    return {"tokenizer": str(tokenizer_file), "cache_dir": cache_dir, "progress": False}


def decoded(tokenizer: Tokenizer, stream: TokenStream) -> list[str]:
    """The documents of a stream; none may be open at its end."""
    ids = stream.read(0, len(stream))
    ends = np.flatnonzero(ids == tokenizer.eot_id)
    assert ends[-1] == len(ids) - 1
    return [tokenizer.decode(part[part != tokenizer.eot_id]) for part in np.split(ids, ends)[:-1]]


@pytest.mark.parametrize("shard_bytes", [1 << 25, 700])
def test_the_ids_are_those_of_the_documents(tmp_path, corpus, shard_bytes):
    prepared = prepare(str(corpus), vocab_size=400, cache_dir=tmp_path, shard_bytes=shard_bytes)
    tokenizer = prepared.tokenizer
    assert list(prepared.splits) == ["train", "valid", "test"]
    found = {split: decoded(tokenizer, stream) for split, stream in prepared.splits.items()}
    assert sorted(chain(*found.values())) == sorted(stories(200))
    assert len(found["valid"]) == len(found["test"]) == 10
    for split, stream in prepared.splits.items():
        ids = [id for text in found[split] for id in [*tokenizer.encode(text), tokenizer.eot_id]]
        assert stream.read(0, len(stream)).tolist() == ids
        assert stream.n_documents == len(found[split])
        assert stream.n_bytes == sum(len(text.encode()) for text in found[split])
        assert stream.vocab_size == tokenizer.vocab_size == 400
        assert stream.tokenizer_hash == tokenizer.hash
    assert (len(prepared.splits["train"].paths) > 5) == (shard_bytes == 700)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("named", [True, False])
def test_the_tokenizer_learns_from_the_training_text_alone(tmp_path, named):
    if named:
        (tmp_path / "train.txt").write_text("abababab\n" * 50)
        (tmp_path / "valid.txt").write_text("xyxyxyxy\n" * 50)
    else:
        (tmp_path / "all.txt").write_text("abababab\n" * 90 + "xyxyxyxy\n" * 10)
    prepared = prepare(str(tmp_path / "*.txt"), vocab_size=300, cache_dir=tmp_path / "cache")
    learned = f"{prepared.tokenizer.vocab_size} tokens instead of the 300 asked for, as every word"
    assert learned in " ".join(prepared.notes)
    assert len(prepared.tokenizer.encode("abababab")) == 1
    assert len(prepared.tokenizer.encode("xyxyxyxy")) == 8
    kept = Tokenizer.load(prepared.folder / "tokenizer.json")
    assert kept.hash == prepared.tokenizer.hash


def test_the_second_run_reads_nothing_but_the_shards(tmp_path, corpus, monkeypatch):
    options: dict[str, Any] = {"vocab_size": 300, "cache_dir": tmp_path / "cache"}
    first = prepare(str(corpus), progress=False, **options)
    before = all_files(first.folder)
    monkeypatch.setattr(job, "plan_splits", None)
    monkeypatch.setattr(Tokenizer, "train_and_encode", None)
    second = prepare(str(corpus), **options)
    assert second.folder == first.folder
    assert all_files(first.folder) == before
    assert any("reused" in note for note in second.notes)
    os.utime(corpus, ns=(1, 1))
    assert prepare(str(corpus), **options).folder == first.folder


def test_a_tokenizer_of_another_text_is_not_taken_for_the_own_one(corpus, tokenizer_file, options):
    own = options | {"tokenizer": None, "vocab_size": 300}
    first = prepare(str(corpus), **own)
    (kept,) = options["cache_dir"].glob("tokenizers/*/tokenizer.json")
    shutil.copy(tokenizer_file, kept)
    with pytest.raises(ValueError, match=r"is not the tokenizer that was .*Or choose one") as error:
        prepare(str(corpus), **own)
    (folder,) = re.findall(r"Delete the folder (\S+) and run again", str(error.value))
    shutil.rmtree(folder)
    assert prepare(str(corpus), **own).tokenizer.hash == first.tokenizer.hash


def test_another_text_or_tokenizer_is_prepared_anew(corpus, tokenizer_file, options):
    own = options | {"tokenizer": None, "vocab_size": 300}
    folders = [
        prepare(str(corpus), **given).folder
        for given in (own, options, options | {"tokenizer": str(tokenizer_file.parent)})
    ]
    corpus.write_text(corpus.read_text(encoding="utf-8") + "More.", encoding="utf-8")
    folders.append(prepare(str(corpus), **own).folder)
    assert folders[1] == folders[2]
    assert len(set(folders)) == 3


@pytest.mark.parametrize("trained_on", [None, 1 << 18, 1 << 28])
def test_a_long_document_gets_the_ids_of_the_whole(tmp_path, options, monkeypatch, trained_on):
    """Whether the tokenizer is given, or trained here, which encodes what it is trained on."""
    if trained_on:
        options |= {"tokenizer": None, "vocab_size": 300}
        monkeypatch.setattr(job, "_TRAINING_CHARS", trained_on)
    text = "".join(f"Line {i}  of\t a long \n\n\n book.\n" for i in range(30_000))
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text(text if split == "train" else "Short.")
    prepared = prepare(str(tmp_path / "*.txt"), **options)
    stream = prepared.splits["train"]
    expected = [*prepared.tokenizer.encode(text), prepared.tokenizer.eot_id]
    assert len(text) > 3 << 18
    assert stream.read(0, len(stream)).tolist() == expected
    assert stream.n_documents == 1


def test_files_for_evaluation_alone_need_a_tokenizer(tmp_path, options):
    path = tmp_path / "my.test.txt"
    path.write_text("Only this.")
    with pytest.raises(ValueError, match=r"no training text .*named for test\).*--tokenizer"):
        prepare(str(path), **options | {"tokenizer": None})
    assert list(prepare(str(path), **options).splits) == ["test"]


def test_too_little_text_for_three_splits_is_said(corpus, options):
    corpus.write_text("Hello.")
    with pytest.raises(ValueError, match=r"stories is too short: nothing is left for the valid sp"):
        prepare(str(corpus), **options)


# Interruption


@pytest.fixture
def place(tmp_path, corpus, tokenizer_file):
    return Place(corpus, tokenizer_file, tmp_path / "cache", shard_bytes=700)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_killed_runs_lose_no_whole_shard_and_end_with_the_same_bytes(place):
    kept: dict[str, int] = {}
    for at in (2, 2, 5):
        place.kill("whole", at)
        assert not (place.folder / "manifest.json").exists()
        assert list(place.folder.glob(".*.tmp"))  # the shard at work
        assert kept.items() < place.times().items()
        kept = place.times()
    assert len(kept) == 1 + 1 + 4
    damaged = kept.popitem()[0]
    flip(place.folder / damaged, -1)
    assert place.prepare() == place.alone()
    assert place.times()[damaged] > max(kept.values())
    assert kept.items() < place.times().items()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_shards_that_were_cut_otherwise_are_refused(place):
    place.kill("whole", 3)
    with pytest.raises(ShardError, match=r"train-00000\.bin .* holds other text .*Delete the fold"):
        replace(place, shard_bytes=1400).prepare()


def test_two_at_once_do_the_work_once(place):
    for process in [place.start("whole"), place.start("whole")]:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert all_files(place.folder) == place.alone()


# Damage to what is prepared


@pytest.fixture
def done(corpus, options):
    """A prepared folder, and a function that opens it again."""

    def again(**more: Any) -> Prepared:
        return prepare(str(corpus), **options, **more)

    return again().folder, again


def test_a_changed_shard_is_named_with_the_remedy(done, monkeypatch):
    folder, again = done
    flip(folder / "test-00000.bin", HEADER_BYTES + 5)
    with pytest.raises(ShardError, match=r"test-00000\.bin fails its SHA-256"):
        again()
    again(verify=False)
    monkeypatch.setattr(manifest, "_VERIFY_BYTES", 0)
    again()  # as for data too large to be read through at each start
    with pytest.raises(ShardError, match="SHA-256"):
        again(verify=True)
    (folder / "test-00000.bin").replace(folder / "valid-00000.bin")
    with pytest.raises(ShardError, match=r"valid-00000\.bin is not the one that .*manifest\.json"):
        again()
    (folder / "valid-00000.bin").write_bytes(b"")
    with pytest.raises(ShardError, match=rf"valid-00000\.bin .*Delete the folder {folder} and run"):
        again()


def test_a_damaged_manifest_is_named_and_leads_to_no_file_outside(done):
    folder, again = done
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    for name in ("../secret.bin", "/etc/passwd", "train-00000.bin/..", "train"):
        content["splits"]["train"]["shards"][0]["file"] = name
        path.write_text(json.dumps(content))
        with pytest.raises(ShardError, match=r"manifest\.json cannot be used \(shard name"):
            again()
    content["splits"]["train"]["shards"] = []
    for text, problem in [
        ("", ""),
        ("{", ""),
        ("[]", ""),
        ('{"format": 2}', "format 2; this program reads 1"),
        ('{"format": 1}', "'source'"),
        (json.dumps(content), "a split has no shard"),
    ]:
        path.write_text(text)
        with pytest.raises(
            ShardError, match=rf"manifest\.json cannot be used \({problem}.*Delete the folder"
        ):
            again()


def test_a_shard_of_another_vocabulary_is_named(done):
    """In its header, beside the right tokenizer and ids."""
    folder, again = done
    flip(folder / "train-00000.bin", 16)
    with pytest.raises(ShardError, match=r"is of a vocabulary of 321 tokens, and .* has 320\. Del"):
        again()


# Size


class Bytes:
    """A stand-in for the tokenizer: as fast as memory, ids are bytes."""

    vocab_size, eot_id, hash = 257, 256, "00"

    @classmethod
    def load(cls, path: object) -> "Bytes":
        return cls()

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]

    def save(self, path: Path) -> None:
        path.touch()


def test_memory_does_not_grow_with_the_text(tmp_path, monkeypatch):
    """One document of 64 MB, without a marker, takes a third of that, all buffers included."""
    path = tmp_path / "long.txt"
    line = b"All work and no play makes Jack a dull boy.\n"
    path.write_bytes(line * (64_000_000 // len(line)))
    monkeypatch.setattr(job, "Tokenizer", Bytes)
    tracemalloc.start()
    prepared = prepare(str(path), tokenizer="bytes", cache_dir=tmp_path, shard_bytes=1 << 20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(stream.n_bytes for stream in prepared.splits.values()) == path.stat().st_size
    assert peak < 22e6


# The command, and real text


def test_the_command_prepares_and_reports(tmp_path, corpus):
    words = ["-m", "gpt2.data.prepare", "--vocab-size", "300", "--verify"]
    words += ["--cache-dir", str(tmp_path / "cache"), "--data", str(corpus)]
    done = run_forked(*words)
    assert done.returncode == 0, done.stderr
    assert "valid: " in done.stdout


def test_real_text_has_the_published_token_counts(tmp_path, real_data):
    """Counts of GPT-2's tokenizer on whole files, and one end-of-text a document."""
    gpt2 = str(real_data / "gpt2-bpe")
    options: dict[str, Any] = {"tokenizer": gpt2, "cache_dir": tmp_path, "progress": False}
    wikitext = prepare(str(real_data / "wikitext-2/wiki.*[td].tokens.gz"), **options)
    counts = {split: len(stream) for split, stream in wikitext.splits.items()}
    assert counts == {"valid": 258_659 + 60, "test": 295_877 + 60}
    # In tinystories each marker stands in a line, whose two line ends belong to it here.
    path = real_data / "tinystories" / "tinystories-valid.txt.gz"
    prepared = prepare(str(path), **options)
    stream = prepared.splits["valid"]
    text = gzip.decompress(path.read_bytes()).decode()
    text = text.replace(f"\n{END_OF_TEXT}\n", END_OF_TEXT)
    expected = prepared.tokenizer.encode(text, allow_special=True)
    assert stream.read(0, len(stream)).tolist() == expected
    assert stream.n_documents == 399


def test_preparing_does_without_torch(tmp_path):
    """Importing it takes about a second and 200 MB."""
    write_stories(tmp_path / "stories.txt", 30)
    code = (
        "import runpy, sys; runpy.run_module('gpt2.data.prepare', run_name='__main__'); "
        "assert 'torch' not in sys.modules"
    )
    options = ["--data", "stories.txt", "--vocab-size", "300"]
    result = run_python("-c", code, *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
