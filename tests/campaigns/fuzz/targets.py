"""Everything that parses bytes of unknown origin, called as the commands call it.

A target has a valid example and a `parse`, which gets a folder with a damaged one. It may raise a
ValueError that names the file; what it returns instead must be sound, which `parse` asserts.
"""

import contextlib
import gzip
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch

from bench import compare
from gpt2.compare_sizes.results import compare as compare_sizes
from gpt2.config import TrainConfig
from gpt2.data.documents import Piece
from gpt2.data.manifest import open_splits
from gpt2.data.shards import TokenStream, open_shards, read_header, verify_shard
from gpt2.data.sources import open_source
from gpt2.demo import model as demo_model
from gpt2.evaluate.tasks import read_rows
from gpt2.model import GPT
from gpt2.report.facts import gather
from gpt2.report.result_files import read_bench, read_decoding, read_sizes
from gpt2.report.sources import RunFacts, read_run
from gpt2.runs.checkpoint import load_checkpoint
from gpt2.runs.metrics import Logs, read_metrics
from gpt2.runs.run import load_run
from gpt2.tokenizer import Tokenizer
from gpt2.training.run_training import begin, build, hold, make_plan, prepare_text
from gpt2.weights.pretrained import load_pretrained
from tests.campaigns.fuzz import examples
from tests.campaigns.fuzz.mutations import Files, Link
from tests.gpt2.report import test_report

_MAX_PIECES = 10_000
Make = Callable[[], dict[str, bytes]]
Parse = Callable[[Path], object]
Reseal = Callable[[Files], None]


@dataclass(frozen=True)
class Target:
    """A reader under test."""

    make: Make  # returns valid files by their path in a folder
    parse: Parse  # reads that folder
    reseal: Reseal | None = None  # puts checksums right after a change, as an attacker would


TARGETS: dict[str, Target] = {}


def target(name: str, make: Make, reseal: Reseal | None = None) -> Callable[[Parse], Parse]:
    """Register the decorated function as the `parse` of a target."""

    def register(parse: Parse) -> Parse:
        TARGETS[name] = Target(make, parse, reseal)
        return parse

    return register


def write(files: Files, folder: Path) -> None:
    """Write the files into an empty folder."""
    for name, entry in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(entry, bytes):
            path.write_bytes(entry)
        elif isinstance(entry, Link):
            path.symlink_to(path.name if entry.to == "itself" else entry.to)
        else:
            path.mkdir()


def _trained_without(*parts: str) -> dict[str, bytes]:
    """Return the run and its data, but for the paths that hold one of the parts."""
    return {
        path: content
        for path, content in examples.trained().items()
        if not any(part in path for part in ("exported", *parts))
    }


_run_alone = partial(_trained_without, "data/", "stories.txt", "-000002")


def _reseal_all(files: Files) -> None:
    examples.reseal_checkpoint(files)
    examples.reseal_shards(files)


@target("shard", lambda: examples.prepared("train-00000.bin"), examples.reseal_shards)
def _shard(folder: Path) -> None:
    path = folder / "train-00000.bin"
    assert read_header(path) == verify_shard(path)
    _read_tokens(open_shards([path], verify=True))


@target("prepared", examples.prepared, examples.reseal_shards)
def _splits(folder: Path) -> None:
    tokenizer = examples.tokenizer()
    for stream in open_splits(folder, tokenizer).values():
        assert stream.vocab_size == tokenizer.vocab_size
        _read_tokens(stream)


def _read_tokens(stream: TokenStream) -> None:
    ids = stream.read(0, len(stream))
    assert ids.shape == (len(stream),)
    assert not len(ids) or 0 <= ids.min() <= ids.max() < stream.vocab_size


@target("checkpoint", lambda: examples.part(examples.STEP), examples.reseal_checkpoint)
def _checkpoint(folder: Path) -> None:
    loaded = load_checkpoint(folder)
    assert isinstance(loaded.state.step, int)


@target("run", _run_alone, examples.reseal_checkpoint)
def _run(folder: Path) -> None:
    run = load_run(folder / "run", device="cpu")
    assert run.model.config.vocab_size == run.tokenizer.vocab_size
    _use(run.model)


def _use(model: GPT) -> None:
    logits, _ = model(torch.zeros(1, 2, dtype=torch.int64))
    assert logits.shape == (1, 2, model.config.vocab_size)


@target("demo", _run_alone, examples.reseal_checkpoint)
def _facts(folder: Path) -> None:
    demo_model.facts(load_run(folder / "run", device="cpu"))


@target("sizes-of-runs", _run_alone, examples.reseal_checkpoint)
def _sizes_of_runs(folder: Path) -> None:
    with examples.quietly_in(folder):
        options = {"data": "stories", "device": "cpu", "sample_tokens": 1}
        compare_sizes({"one": folder / "run"}, {"Story": [1]}, **options)


@target("resume", _trained_without, _reseal_all)
def _resume(folder: Path) -> None:
    with examples.quietly_in(folder):
        plan = make_plan(TrainConfig(resume="run"))
        prepared = prepare_text(plan)
        trainer = build(plan, prepared)
        with hold(plan.folder):
            begin(plan, prepared, trainer)
            Logs(plan.folder, after_step=trainer.step).close()


@target("pretrained", lambda: examples.part("exported/", "config.json", "model.safetensors"))
@target("pretrained-shards", examples.sharded)
@target("pickle", lambda: examples.part("exported/", "config.json", "pytorch_model.bin"))
@target("pickle-shards", lambda: examples.sharded("pytorch_model", "bin"))
def _pretrained(folder: Path) -> None:
    _use(load_pretrained(folder))


@target("tokenizer", lambda: examples.part("run/", "tokenizer.json"))
@target("tokenizer-pair", examples.vocabulary_pair)
def _tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    for text in ("Story 1. The cat saw\n\n  birds \u00e9\u4e2d\0", "<|endoftext|>"):
        for allow_special in (False, True):
            ids = tokenizer.encode(text, allow_special=allow_special)
            assert all(0 <= token < tokenizer.vocab_size for token in ids)
            assert tokenizer.decode(ids) == text
    assert len(tokenizer.hash) == 64
    tokenizer.decode(range(tokenizer.vocab_size))


@target("metrics", lambda: examples.part("run/", "metrics.jsonl"))
def _metrics(folder: Path) -> None:
    lines = read_metrics(folder / "metrics.jsonl")
    for line in lines:
        assert isinstance(line["step"], int)
        assert all(value is None or isinstance(float(value), float) for value in line.values())
    Logs(folder, after_step=2).close()
    assert all(line["step"] <= 2 for line in read_metrics(folder / "metrics.jsonl"))


@target("report", partial(_run_alone, "checkpoints"))
def _report(folder: Path) -> None:
    gather([read_run(folder / "run", folder / "data")])


@cache
def _reported() -> RunFacts:
    """Return a valid run, to be reported on with the file under test."""
    with tempfile.TemporaryDirectory() as folder:
        write(dict(examples.part("run/")), Path(folder))
        return read_run(Path(folder))


@target("decoding", lambda: {"decoding.json": examples.written_by(test_report.write_decoding)})
def _decoding(folder: Path) -> None:
    gather([_reported()], decoding=read_decoding(folder / "decoding.json"))


@target("sizes", lambda: {"sizes.json": examples.written_by(test_report.write_sizes)})
def _sizes(folder: Path) -> None:
    gather([_reported()], sizes=read_sizes(folder / "sizes.json"))


@target("bench", lambda: {"bench.json": examples.bench()})
def _bench(folder: Path) -> None:
    gather([_reported()], bench=read_bench(folder / "bench.json"))


@target("compared", lambda: dict.fromkeys(("old.json", "new.json"), examples.bench()))
def _compared(folder: Path) -> None:
    # It ends with status 1 where something of ours became slower.
    with examples.quietly_in(folder), contextlib.suppress(SystemExit):
        compare.main(compare.Arguments(folder / "old.json", folder / "new.json", force=True))


@target("rows", lambda: {"rows.jsonl": examples.json_lines()})
def _rows(folder: Path) -> None:
    assert all(isinstance(row, dict) for row in read_rows(str(folder / "rows.jsonl"), "lambada"))


def _text(name: str, folder: Path) -> None:
    source = open_source(str(folder / name), cache_dir=folder / "cache")
    for read in source.splits.values():
        for number, piece in enumerate(read()):
            assert isinstance(piece, Piece)
            piece.text.encode()
            assert number < _MAX_PIECES


def _add_text(suffix: str, make: Callable[[], bytes]) -> None:
    name = f"a.{suffix}"
    TARGETS[suffix] = Target(lambda: {name: make()}, partial(_text, name))


_add_text("txt", examples.stories)
_add_text("txt.gz", lambda: gzip.compress(examples.stories(), mtime=0))
_add_text("jsonl", examples.json_lines)
_add_text("jsonl.gz", lambda: gzip.compress(examples.json_lines(), mtime=0))
_add_text("csv", examples.separated)
_add_text("parquet", examples.parquet)
_add_text("arrow", examples.arrow)
