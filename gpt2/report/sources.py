"""What a report is made of: run folders, and the files of the tools, read and checked."""

import dataclasses
import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2.config import GPTConfig, TrainConfig
from gpt2.data.manifest import MANIFEST
from gpt2.estimate import flops_per_token
from gpt2.logs import read_metrics
from gpt2.model import count_parameters
from gpt2.run import read_config
from gpt2.tokenizer import Tokenizer

_SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Split:
    """Size of a split; `bytes` of UTF-8 text."""

    tokens: int
    documents: int
    bytes: int


@dataclass(frozen=True)
class Data:
    """The text of a run: its name, how splits came about, their sizes."""

    name: str
    held_out: str
    splits: dict[str, Split]


@dataclass(frozen=True)
class Scored:
    """The test split scored, and how: see gpt2/evaluate.py."""

    loss: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    bytes: int
    context: int
    stride: int


@dataclass(frozen=True)
class RunFacts:
    """All that a finished run folder says.

    Attributes:
        train_curve: (step, mean training loss of the steps since the line before).
        val_curve: (step, validation loss).
        seconds: spent in training steps, evaluation and checkpoints not counted.
        step: of the weights that were scored (best validation loss).
        data: None where neither the run nor the data cache says.
        machine: what result.json says of the device; empty where it says nothing.
        finished: when the run ended, in UTC.
    """

    folder: Path
    train: TrainConfig
    model: GPTConfig
    parameters: int
    tokenizer_hash: str
    train_curve: list[tuple[int, float]]
    val_curve: list[tuple[int, float]]
    lr_curve: list[tuple[int, float]]
    grad_norms: list[float]
    skipped: int
    seconds: float
    step: int
    val_loss: float
    test: Scored
    prompt: str
    samples: dict[str, str]
    data: Data | None
    machine: dict[str, Any]
    finished: datetime.datetime

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def data_name(self) -> str:
        return self.data.name if self.data else Path(self.train.data).name

    @property
    def steps(self) -> int:
        """Optimizer steps taken."""
        return self.val_curve[-1][0]

    @property
    def tokens_per_step(self) -> int:
        train = self.train
        assert train.seq_len
        assert train.batch_size
        assert train.grad_accum
        return train.seq_len * train.batch_size * train.grad_accum

    @property
    def tokens(self) -> int:
        """Training tokens seen."""
        return self.steps * self.tokens_per_step

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    @property
    def flops(self) -> int:
        """Model FLOPs of the whole run ("exact" convention of gpt2/estimate.py)."""
        return self.tokens * flops_per_token(self.model, self.train.seq_len or 1)


def read_run(folder: Path, cache_dir: Path | None = None) -> RunFacts:
    """Read a finished run.

    Args:
        folder: what `python train.py` made.
        cache_dir: where the data of a run lies that does not say what its splits hold; None is the
            cache that it was trained with.

    Raises:
        ValueError: not a run folder, or one that has not ended; says what is missing.
    """
    train, model = read_config(folder)
    path = folder / "result.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} has no result.json: its training has not ended. Go on with "
            f"`python train.py --resume {folder}`, and report on it then."
        )
    metrics = read_metrics(folder / "metrics.jsonl")
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    result = read_json(path)
    try:
        test = Scored(**{f.name: result["test"][f.name] for f in dataclasses.fields(Scored)})
        step, val_loss = int(result["step"]), float(result["val_loss"])
        prompt = str(result["prompt"])
        samples = {str(name): str(text) for name, text in result["samples"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} does not hold the result of a run: {error!r}") from error
    measured = [m for m in metrics if "loss" in m]
    evaluated = [(int(m["step"]), float(m["val_loss"])) for m in metrics if "val_loss" in m]
    if not measured or not evaluated:
        raise ValueError(
            f"{folder / 'metrics.jsonl'} holds no training and validation losses: without them "
            "there is no curve to report"
        )
    data = _data(result, path) or _cached_data(
        cache_dir or Path(train.cache_dir), tokenizer.hash, test
    )
    return RunFacts(
        folder=folder,
        train=train,
        model=model,
        parameters=count_parameters(model),
        tokenizer_hash=tokenizer.hash,
        train_curve=[(m["step"], m["loss"]) for m in measured],
        val_curve=evaluated,
        lr_curve=[(m["step"], m["lr"]) for m in measured],
        grad_norms=[m["grad_norm"] for m in measured if m.get("grad_norm") is not None],
        skipped=measured[-1]["skipped"],
        seconds=_seconds(measured),
        step=step,
        val_loss=val_loss,
        test=test,
        prompt=prompt,
        samples=samples,
        data=data,
        machine=result.get("machine", {}),
        finished=_finished(result, path),
    )


def same_tokenizer(runs: Sequence[RunFacts]) -> bool:
    """Whether losses per token can be compared."""
    return len({run.tokenizer_hash for run in runs}) == 1


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: there is no such file, or it holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object")
    return content


def _seconds(measured: list[dict[str, Any]]) -> float:
    """Time in training steps, from the speed of each interval."""
    seconds, before, skipped = 0.0, 0, 0
    for line in measured:
        tokens_per_step = line["tokens"] / line["step"]
        steps = line["step"] - before - (line["skipped"] - skipped)
        seconds += steps * tokens_per_step / line["tokens_per_s"]
        before, skipped = line["step"], line["skipped"]
    return seconds


def _finished(result: dict[str, Any], path: Path) -> datetime.datetime:
    """The time in result.json; of a run that does not say, when that file was written."""
    if "finished" in result:
        return datetime.datetime.fromisoformat(result["finished"]).astimezone(datetime.timezone.utc)
    return datetime.datetime.fromtimestamp(int(path.stat().st_mtime), datetime.timezone.utc)


def _data(result: dict[str, Any], path: Path) -> Data | None:
    if "data" not in result:
        return None
    try:
        data = result["data"]
        splits = {split: Split(**data["splits"][split]) for split in _SPLITS}
        return Data(str(data["name"]), str(data["held_out"]), splits)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: its entry 'data' cannot be read: {error!r}") from error


def _cached_data(cache_dir: Path, tokenizer_hash: str, test: Scored) -> Data | None:
    """The data in the cache that has this tokenizer and just the test split that was scored."""
    for path in sorted(cache_dir.glob(f"*-{tokenizer_hash[:8]}/{MANIFEST}")):
        manifest = read_json(path)
        splits = {
            split: Split(entry["tokens"], entry["documents"], entry["text_bytes"])
            for split, entry in manifest["splits"].items()
        }
        scored = splits.get("test")
        if scored and (scored.tokens, scored.bytes) == (test.tokens, test.bytes):
            return Data(manifest["source"]["name"], manifest["held_out"], splits)
    return None
