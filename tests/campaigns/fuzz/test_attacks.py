"""The attacks that one would try first, each by name: bombs, code in a pickle, huge numbers.

Every file here is small and harms no reader: where a real attack would need gigabytes, the bound
that it runs into is lowered instead, and where it would crash or stall a library, the file is a
harmless one that the same check refuses.
"""

import gzip
import io
import json
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from gpt2.data import documents, readers
from gpt2.data.manifest import open_splits
from gpt2.data.readers import read_pieces
from gpt2.runs.checkpoint import RNG, DamagedCheckpoint, load_checkpoint
from gpt2.runs.run import load_run
from gpt2.weights.pretrained import load_pretrained
from tests.campaigns.fuzz import examples
from tests.campaigns.fuzz.mutations import Files
from tests.campaigns.fuzz.targets import write
from tests.campaigns.fuzz.watch import watched

KIB, MIB = 1 << 10, 1 << 20


def lay(folder: Path, files: dict[str, bytes]) -> Path:
    write(dict(files), folder)
    return folder


@pytest.mark.parametrize("text", [b"\1", b"the cat ", b"\xe4\xb8\xad"], ids=ascii)
def test_packed_text_is_a_stream_however_much_it_is(tmp_path, monkeypatch, text):
    """The file has a thousandth of the size that it unpacks to, with and without spaces."""
    monkeypatch.setattr(readers, "PIECE_CHARS", 4 * KIB)
    monkeypatch.setattr(documents, "PIECE_CHARS", 4 * KIB)
    monkeypatch.setattr(documents, "_RUN_CHARS", 8 * KIB)
    member = text * (256 * KIB // len(text))
    path = tmp_path / "bomb.txt.gz"
    path.write_bytes(gzip.compress(member, mtime=0) * 8)
    tracemalloc.start()
    read = sum(len(piece.text.encode()) for piece in read_pieces(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert read == 8 * len(member)
    assert peak < 512 * KIB + 4 * io.DEFAULT_BUFFER_SIZE


@pytest.mark.parametrize("name", ["bomb.jsonl", "bomb.jsonl.gz"])
def test_a_line_without_end_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setattr(readers, "LINE_BYTES", 1000)
    path, wrap = tmp_path / name, gzip.compress if name.endswith("gz") else bytes
    line = b'{"text": "' + b"a" * 987 + b'"}\n'
    path.write_bytes(wrap(line))
    assert len(line) == 1000
    assert len(list(read_pieces(path))) == 1
    path.write_bytes(wrap(b" " + line))
    with pytest.raises(ValueError, match=rf"{name}, line 1: longer than"):
        list(read_pieces(path))


def test_one_long_text_packed_as_many_rows_of_parquet(tmp_path, monkeypatch):
    pa = pytest.importorskip("pyarrow")
    path = tmp_path / "bomb.parquet"
    pq = pytest.importorskip("pyarrow.parquet")
    text = pa.array(["ab " * (100 * KIB)])
    rows = pa.DictionaryArray.from_arrays(pa.array([0] * 200, pa.int32()), text)
    pq.write_table(pa.table({"text": rows}), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < MIB
    with watched(memory=30 * MIB):  # of 60 MiB in all
        assert sum(piece.last for piece in read_pieces(path)) == 200
    monkeypatch.setattr(readers, "_PAGE_BYTES", MIB)
    rows = text.take(pa.array([0] * 5))
    pq.write_table(pa.table({"text": rows}), path, compression="zstd", use_dictionary=False)
    with pytest.raises(ValueError, match="which no text does"):
        list(read_pieces(path))


@pytest.mark.parametrize(
    "changes", [{"n_layer": 4096}, {"n_embd": 1 << 20}, {"n_positions": 1 << 24}]
)
def test_a_model_far_larger_than_its_weights_is_refused(tmp_path, changes):
    exported = examples.part("exported/", "config.json", "model.safetensors")
    config = json.loads(exported["config.json"]) | {"n_embd": 1 << 14} | changes
    exported["config.json"] = json.dumps(config).encode()
    run = examples.part("run/")
    config = json.loads(run["config.json"])
    config["model"]["n_embd"] = 1 << 14
    run["config.json"] = json.dumps(config).encode()
    refused = pytest.raises(ValueError, match=r"config\.json describes a model")
    with watched(memory=64 * MIB):
        with refused:
            load_pretrained(lay(tmp_path / "exported", exported))
        with refused:
            load_run(lay(tmp_path / "run", run), device="cpu")


class Opens:
    """An object whose pickle creates the file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def _new(content: object, *, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


_old = partial(_new, zipped=False)


@pytest.mark.parametrize("form", [_new, _old, pickle.dumps], ids=["zip", "old", "bare"])
@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "shards"])
def test_code_in_a_pickle_is_not_run(tmp_path, form: Callable[[object], bytes], sharded):
    trap = tmp_path / "was-run"
    content = form({"wte.weight": Opens(trap)})
    files = examples.part("exported/", "config.json", "pytorch_model.bin")
    if sharded:
        files = examples.sharded("pytorch_model", "bin")
    (name,) = (name for name in files if name.endswith(".bin"))
    files[name] = content
    with pytest.raises(ValueError, match=name):
        load_pretrained(lay(tmp_path / "model", files))
    assert not trap.exists()
    torch.load(io.BytesIO(_new(Opens(trap))), weights_only=False)
    assert trap.exists(), "the trap works"


def _referring_twice(key: bool) -> bytes:
    """Return a pickle of a pair of twice the same pair, as a key or as a whole.

    Sixty of them, each twice in the next, would keep a reader busy for ever: it hashes the key part
    by part, or walks through all parts of the whole.
    """
    program = b"\x80\x02}q\x00" + (b"K\x01" if key else b"X\x01\x00\x00\x00a")
    for number in (1, 2):
        program += b"q" + bytes([number]) + b"h" + bytes([number]) + b"\x86"
    return program + (b"K\x02s." if key else b"s.")


@pytest.mark.parametrize("key", [True, False])
@pytest.mark.parametrize("form", ["zip", "old", "old before a zip"])
def test_a_pickle_that_refers_twice_to_a_part_is_refused(tmp_path, form, key):
    files = examples.part("exported/", "config.json")
    program = _referring_twice(key)
    content = _with_member(io.BytesIO(_new({})), "data.pkl", program)
    if form != "zip":
        head = _old({}).partition(pickle.dumps({}, 2))[0]
        content = head + program + pickle.dumps([], 2) + (_new({}) if "zip" in form else b"")
    files["pytorch_model.bin"] = content
    with pytest.raises(ValueError, match="refers twice to a list, tuple or dictionary"):
        load_pretrained(lay(tmp_path, files))


def _with_member(archive: io.BytesIO, suffix: str, content: bytes, kind: int = 0) -> bytes:
    changed = io.BytesIO()
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(changed, "w", kind) as new:
        for name in old.namelist():
            new.writestr(name, content if name.endswith(suffix) else old.read(name))
    return changed.getvalue()


def test_a_packed_archive_of_tensors_is_refused(tmp_path):
    """This one unpacks to little; another could unpack to a thousand times its size."""
    archive = io.BytesIO(_new({"wte.weight": torch.zeros(100)}))
    files = examples.part("exported/", "config.json")
    files["pytorch_model.bin"] = _with_member(archive, "data/0", bytes(400), zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"torch\.save packs none"):
        load_pretrained(lay(tmp_path, files))


def test_a_random_state_beyond_its_words_is_refused(tmp_path):
    """NumPy would read there, beyond its memory; it refuses this state, whose words are too few."""
    files: Files = dict(examples.part(examples.STEP))
    state = safetensors.torch.load(files[RNG])
    state["numpy.keys"] = state["numpy.keys"][:100].clone()
    state["numpy.position"][0] = 101
    files[RNG] = safetensors.torch.save(state)
    examples.reseal_checkpoint(files)
    write(files, tmp_path)
    with pytest.raises(DamagedCheckpoint, match="generator has no position 101"):
        load_checkpoint(tmp_path)


def test_links_give_nothing_away(tmp_path):
    """A link in a folder of data shows no line of the file that it leads to."""
    secret = tmp_path / "secret"
    secret.write_text("do not tell")
    folder = lay(tmp_path / "data", examples.prepared())
    for name, to in (("train-00000.bin", secret), ("manifest.json", secret)):
        (folder / name).unlink()
        (folder / name).symlink_to(to)
        with pytest.raises(ValueError, match=name) as error:
            open_splits(folder, examples.tokenizer())
        assert "do not tell" not in str(error.value)
