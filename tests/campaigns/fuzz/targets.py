"""Everything that parses bytes of unknown origin, called as the commands call it.

A target has a valid example and a `parse`, which gets a folder with a damaged one. It may raise a
ValueError that names the file; what it returns instead must be sound, which `parse` asserts.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch

from bench import compare
from gpt2.compare_sizes.results import compare as compare_sizes
from gpt2.config import TrainConfig
from gpt2.data import prepare
from gpt2.data.documents import Piece
from gpt2.data.job import Job
from gpt2.data.manifest import open_splits
from gpt2.data.shards import TokenStream, read_header, verify_shard
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

_MAX_PIECES = 10_000


@dataclass(frozen=True)
class Target:
    """What is fuzzed.

    Attributes:
        make: the valid files by their path in a folder.
        parse: reads that folder.
        reseal: puts checksums right after a change, as an attacker would.
    """

    make: Callable[[], dict[str, bytes]]
    parse: Callable[[Path], object]
    reseal: Callable[[Files], None] | None = None


def _shard(folder: Path) -> None:
    path = folder / "train-00000.bin"
    assert read_header(path) == verify_shard(path)
    _read_tokens(TokenStream([path], verify=True))


def _splits(folder: Path) -> None:
    tokenizer = examples.tokenizer()
    for stream in open_splits(folder, tokenizer).values():
        assert stream.vocab_size == tokenizer.vocab_size
        _read_tokens(stream)


def _read_tokens(stream: TokenStream) -> None:
    ids = stream.read(0, len(stream))
    assert ids.shape == (len(stream),)
    assert not len(ids) or 0 <= ids.min() <= ids.max() < stream.vocab_size


def _checkpoint(folder: Path) -> None:
    loaded = load_checkpoint(folder)
    assert isinstance(loaded.state.step, int)


def _run(folder: Path) -> None:
    run = load_run(folder / "run", device="cpu")
    assert run.model.config.vocab_size == run.tokenizer.vocab_size
    _use(run.model)


def _use(model: GPT) -> None:
    logits, _ = model(torch.zeros(1, 2, dtype=torch.int64))
    assert logits is not None
    assert logits.shape == (1, 2, model.config.vocab_size)


def _resume(folder: Path) -> None:
    with examples.working_in(folder), examples.quiet():
        plan = make_plan(TrainConfig(resume="run"))
        prepared = prepare_text(plan)
        trainer = build(plan, prepared)
        with hold(plan.folder):
            begin(plan, prepared, trainer)
            Logs(plan.folder, after_step=trainer.step).close()


def _pretrained(folder: Path) -> None:
    _use(load_pretrained(folder))


def _tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    for text in ("Story 1. The cat saw\n\n  birds \u00e9\u4e2d\0", "<|endoftext|>"):
        for allow_special in (False, True):
            ids = tokenizer.encode(text, allow_special=allow_special)
            assert all(0 <= token < tokenizer.vocab_size for token in ids)
            assert tokenizer.decode(ids) == text
    assert len(tokenizer.hash) == 64
    tokenizer.decode(range(tokenizer.vocab_size))


def _metrics(folder: Path) -> None:
    lines = read_metrics(folder / "metrics.jsonl")
    for line in lines:
        assert isinstance(line["step"], int)
        assert all(value is None or isinstance(float(value), float) for value in line.values())
    Logs(folder, after_step=2).close()
    assert all(line["step"] <= 2 for line in read_metrics(folder / "metrics.jsonl"))


def _report(folder: Path) -> None:
    gather([read_run(folder / "run", folder / "data")])


def _decoding(folder: Path) -> None:
    gather([_reported()], decoding=read_decoding(folder / "decoding.json"))


def _sizes(folder: Path) -> None:
    gather([_reported()], sizes=read_sizes(folder / "sizes.json"))


def _bench(folder: Path) -> None:
    gather([_reported()], bench=read_bench(folder / "bench.json"))


def _text(name: str, folder: Path) -> None:
    source = open_source(str(folder / name), cache_dir=folder / "cache")
    for read in source.splits.values():
        for number, piece in enumerate(read()):
            assert isinstance(piece, Piece)
            piece.text.encode()
            assert number < _MAX_PIECES


@cache
def _reported() -> RunFacts:
    """A run that is in order, to be reported on with the file under test."""
    with tempfile.TemporaryDirectory() as folder:
        write(dict(examples.part("run/")), Path(folder))
        return read_run(Path(folder))


def write(files: Files, folder: Path) -> None:
    """Lay the files into an empty folder."""
    for name, entry in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(entry, bytes):
            path.write_bytes(entry)
        elif isinstance(entry, Link):
            path.symlink_to(path.name if entry.to == "itself" else entry.to)
        else:
            path.mkdir()


def _reseal_all(files: Files) -> None:
    examples.reseal_checkpoint(files)
    examples.reseal_shards(files)


def _compared(folder: Path) -> None:
    with examples.quiet():
        compare.main(compare.Arguments(folder / "old.json", folder / "new.json", force=True))


def _rows(folder: Path) -> None:
    assert all(isinstance(row, dict) for row in read_rows(str(folder / "rows.jsonl"), "lambada"))


def _sizes_of_runs(folder: Path) -> None:
    with examples.quiet():
        compare_sizes(
            {"one": folder / "run"}, {"Story": [1]}, data="stories", device="cpu", sample_tokens=1
        )


def _merged(folder: Path) -> None:
    with examples.working_in(folder), examples.quiet():
        merged = prepare.merge(Job("stories.txt", vocab_size=264, progress=False))
        for stream in merged.splits.values():
            _read_tokens(stream)


def _facts(folder: Path) -> None:
    demo_model.facts(load_run(folder / "run", device="cpu"))


def _bin() -> dict[str, bytes]:
    return examples.part("exported/", "config.json", "pytorch_model.bin")


def _file(name: str, make: Callable[[], bytes]) -> Callable[[], dict[str, bytes]]:
    return lambda: {name: make()}


def _texts(name: str, make: Callable[[], bytes]) -> Target:
    return Target(_file(name, make), partial(_text, name))


TARGETS: dict[str, Target] = {
    "shard": Target(
        lambda: {"train-00000.bin": examples.prepared()["train-00000.bin"]},
        _shard,
        examples.reseal_shards,
    ),
    "prepared": Target(examples.prepared, _splits, examples.reseal_shards),
    "checkpoint": Target(
        lambda: examples.part(examples.STEP), _checkpoint, examples.reseal_checkpoint
    ),
    "run": Target(
        lambda: {f"run/{k}": v for k, v in examples.part("run/").items() if "-000002" not in k},
        _run,
        examples.reseal_checkpoint,
    ),
    "resume": Target(
        lambda: {k: v for k, v in examples.trained().items() if not k.startswith("exported")},
        _resume,
        _reseal_all,
    ),
    "pretrained": Target(
        lambda: examples.part("exported/", "config.json", "model.safetensors"), _pretrained
    ),
    "pretrained-shards": Target(examples.sharded, _pretrained),
    "pickle": Target(_bin, _pretrained),
    "pickle-shards": Target(lambda: examples.sharded("pytorch_model", "bin"), _pretrained),
    "tokenizer": Target(lambda: examples.part("run/", "tokenizer.json"), _tokenizer),
    "tokenizer-pair": Target(examples.vocabulary_pair, _tokenizer),
    "metrics": Target(lambda: examples.part("run/", "metrics.jsonl"), _metrics),
    "report": Target(
        lambda: {
            f"run/{name}": content
            for name, content in examples.part("run/").items()
            if "/" not in name
        },
        _report,
    ),
    "decoding": Target(_file("decoding.json", examples.decoding), _decoding),
    "sizes": Target(_file("sizes.json", examples.sizes), _sizes),
    "bench": Target(_file("bench.json", examples.bench), _bench),
    "sizes-of-runs": Target(
        lambda: {f"run/{k}": v for k, v in examples.part("run/").items() if "-000002" not in k},
        _sizes_of_runs,
        examples.reseal_checkpoint,
    ),
    "parts": Target(examples.parts, _merged, examples.reseal_shards),
    "compared": Target(
        lambda: {"old.json": examples.bench(), "new.json": examples.bench()}, _compared
    ),
    "demo": Target(
        lambda: {f"run/{k}": v for k, v in examples.part("run/").items() if "-000002" not in k},
        _facts,
        examples.reseal_checkpoint,
    ),
    "txt": _texts("a.txt", examples.stories),
    "txt.gz": _texts("a.txt.gz", lambda: examples.packed(examples.stories())),
    "jsonl": _texts("a.jsonl", examples.json_lines),
    "jsonl.gz": _texts("a.jsonl.gz", lambda: examples.packed(examples.json_lines())),
    "parquet": _texts("a.parquet", examples.parquet),
    "rows": Target(_file("rows.jsonl", examples.json_lines), _rows),
}
