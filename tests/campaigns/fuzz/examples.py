"""Small valid files of every kind, made once a process by the code that writes them."""

import contextlib
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import safetensors.torch
import torch

from gpt2.config import TrainConfig
from gpt2.runs.run import load_run
from gpt2.tokenizer import Tokenizer
from gpt2.tokenizer.vocabulary import END_OF_TEXT, _spell, read_vocabulary
from gpt2.training.run_training import run_training
from gpt2.weights.export import export
from gpt2.weights.hugging_face import tensors_to_hugging_face
from tests.campaigns.fuzz.mutations import Files

ROOT = Path(__file__).resolve().parents[3]
STEP = "run/checkpoints/step-000004/"
CONFIG = TrainConfig(
    data="stories.txt", out="run", vocab_size=264, preset="demo", n_layer=1, n_head=2, n_embd=8,
    seq_len=16, batch_size=2, steps=4, eval_every=2, checkpoint_every=2, eval_tokens=64,
    log_every=1, sample_tokens=2, device="cpu", dtype="fp32", optimizer="adamw",
)  # fmt: skip


@contextlib.contextmanager
def quietly_in(folder: Path) -> Iterator[None]:
    """Work in a folder, with nothing printed."""
    before, nowhere = Path.cwd(), io.StringIO()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _in_new_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name, quietly_in(Path(name)):
        yield Path(name)


def stories() -> bytes:
    documents = [f"Story {i}. The cat saw {i % 9} birds.\n\nIt ran home.\n" for i in range(60)]
    return f"\n{END_OF_TEXT}\n".join(documents).encode()


@cache
def trained() -> dict[str, bytes]:
    """Train a run in `run` with its data in `data`; export it to `exported`."""
    with _in_new_folder() as folder:
        (folder / "stories.txt").write_bytes(stories())
        assert run_training(CONFIG) is None
        run = load_run("run", device="cpu")
        export(run.model, run.tokenizer, folder / "exported", dtype=torch.float32)
        torch.save(tensors_to_hugging_face(run.model), folder / "exported/pytorch_model.bin")
        return _contents(folder)


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".png" and not path.name.endswith("lock")
    }


def part(prefix: str, *names: str) -> dict[str, bytes]:
    """Return the files of `trained` below a path, or those of these names there."""
    files = {path: content for path, content in trained().items() if path.startswith(prefix)}
    files = {path.removeprefix(prefix): content for path, content in files.items()}
    return {name: files[name] for name in names} if names else files


def prepared(*names: str) -> dict[str, bytes]:
    """Return the files of the tokenised data, or those of these names."""
    (manifest,) = (path for path in trained() if path.endswith("/manifest.json") and "data" in path)
    return part(manifest.removesuffix("manifest.json"), *names)


def sharded(stem: str = "model", suffix: str = "safetensors") -> dict[str, bytes]:
    """Return the exported model as an index and one shard."""
    shard = f"{stem}-00001-of-00001.{suffix}"
    names = safetensors.torch.load(part("exported/")["model.safetensors"])
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, shard)}
    return {
        **part("exported/", "config.json"),
        f"{stem}.{suffix}.index.json": json.dumps(index).encode(),
        shard: part("exported/")[f"{stem}.{suffix}"],
    }


@cache
def tokenizer() -> Tokenizer:
    with _in_new_folder() as folder:
        (folder / "tokenizer.json").write_bytes(part("run/")["tokenizer.json"])
        return Tokenizer.load(folder)


@cache
def vocabulary_pair() -> dict[str, bytes]:
    """Return the tokenizer as GPT-2's own two files."""
    with _in_new_folder() as folder:
        (folder / "tokenizer.json").write_bytes(part("run/")["tokenizer.json"])
        ids, merges, special = read_vocabulary(folder)
    encoder = {_spell(token): number for token, number in ids.items()} | special
    lines = ["#version: 0.2", *(f"{_spell(left)} {_spell(right)}" for left, right in merges), ""]
    return {"encoder.json": json.dumps(encoder).encode(), "vocab.bpe": "\n".join(lines).encode()}


def json_lines() -> bytes:
    lines = [json.dumps({"text": f"Story {i}: \u00e9\u4e2d", "n": i}) for i in range(5)]
    return "\n".join(lines).encode() + b"\n"


def separated() -> bytes:
    rows = "".join(f'{i},"Story {i}, told: ""\u00e9""\n{i}"\r\n' for i in range(5))
    return f"n,text\r\n{rows}".encode()


@cache
def arrow() -> bytes:
    import pyarrow as pa

    table = pa.table({"text": [f"Story {i}: the cat. \u00e9" for i in range(5)] + [None]})
    file = io.BytesIO()
    with pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    return file.getvalue()


@cache
def parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = [f"Story {i}: the cat. \u00e9" for i in range(5)] + [None]
    file = io.BytesIO()
    pq.write_table(pa.table({"text": texts, "n": range(6)}), file, compression="gzip")
    return file.getvalue()


@cache
def written_by(write: Callable[[Path], object]) -> bytes:
    """Return the content of the file that a function writes."""
    with _in_new_folder() as folder:
        write(folder / "file")
        return (folder / "file").read_bytes()


@cache
def bench() -> bytes:
    """Return a committed result, with the first two cases of each benchmark."""
    path = next((ROOT / "bench/results").glob("cpu*/*.json"))
    results = json.loads(path.read_bytes())
    kept: dict[str, list[str]] = {}
    for row in results["rows"]:
        cases = kept.setdefault(row["bench"], [])
        case = json.dumps(row["case"])
        if case not in cases and len(cases) < 2:
            cases.append(case)
    results["rows"] = [r for r in results["rows"] if json.dumps(r["case"]) in kept[r["bench"]]]
    return json.dumps(results).encode()


def reseal_checkpoint(files: Files) -> None:
    """Write the manifest again, with the checksums that the files have now."""
    for path in [path for path in files if path.endswith("state.json")]:
        prefix = path.removesuffix("state.json")
        files.pop(prefix + "manifest.json", None)
        sums = {}
        for name, content in files.items():
            if name.startswith(prefix) and isinstance(content, bytes):
                digest = hashlib.sha256(content).hexdigest()
                sums[name.removeprefix(prefix)] = {"bytes": len(content), "sha256": digest}
        files[prefix + "manifest.json"] = json.dumps({"format": 1, "files": sums}).encode()


# What is raised where an earlier change has left no manifest to put right.
_OTHER_SHAPE = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


def reseal_shards(files: Files) -> None:
    """Put the right checksum into each shard's header, and into the manifest."""
    shards = {}
    for name, content in files.items():
        if name.endswith(".bin") and isinstance(content, bytes) and len(content) >= 256:
            digest = hashlib.sha256(content[256:])
            at = 56 + 64  # behind the tokenizer's hash
            files[name] = content[:at] + digest.digest() + content[at + 32 :]
            shards[name.rpartition("/")[2]] = digest.hexdigest()
    for name in [name for name in files if name.endswith("manifest.json")]:
        content = files[name]
        with contextlib.suppress(*_OTHER_SHAPE):
            manifest = json.loads(content) if isinstance(content, bytes) else {}
            for entry in manifest["splits"].values():
                for shard in entry["shards"]:
                    shard["sha256"] = shards.get(shard["file"], shard["sha256"])
            files[name] = json.dumps(manifest).encode()
