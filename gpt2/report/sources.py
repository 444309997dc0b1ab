"""Reads and checks what run folders say."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2.common.json_files import from_json, is_number, read_json_object
from gpt2.config import GPTConfig, Settings
from gpt2.data.manifest import MANIFEST
from gpt2.model import count_parameters
from gpt2.runs.metrics import read_metrics
from gpt2.runs.run import read_config, read_config_file
from gpt2.tokenizer import Tokenizer
from gpt2.training.estimate import flops_per_token

_SPLITS = ("train", "valid", "test")
_LARGEST_LOSS = 700.0  # the exponential of more is no float


def check_positive(facts: object, *names: str) -> None:
    """Raise ValueError if one of these attributes is not above 0."""
    for name in names:
        if not getattr(facts, name) > 0:
            raise ValueError(f"{name} must be above 0, got {getattr(facts, name)}")


@dataclass(frozen=True)
class Split:
    """Size of a split; `bytes` of UTF-8 text."""

    tokens: int
    documents: int
    bytes: int

    def __post_init__(self) -> None:
        check_positive(self, "tokens", "bytes")


@dataclass(frozen=True)
class Data:
    """The text of a run: its name, how its splits were held out, in words, and their sizes."""

    name: str
    held_out: str
    splits: dict[str, Split]

    @property
    def complete(self) -> bool:
        return self.splits.keys() == set(_SPLITS)


@dataclass(frozen=True)
class Scored:
    """The test split's loss in nats per token, and its protocol (gpt2/evaluate/perplexity.py)."""

    loss: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    bytes: int
    context: int
    stride: int

    def __post_init__(self) -> None:
        check_positive(self, "loss", "perplexity", "bits_per_byte", "tokens", "bytes", "context")


@dataclass(frozen=True, kw_only=True)
class _Result:
    """The content of a result.json."""

    step: int
    val_loss: float
    test: Scored
    prompt: str
    samples: dict[str, str]
    data: Data | None = None
    machine: dict[str, Any] = field(default_factory=dict)
    finished: str | None = None

    def __post_init__(self) -> None:
        check_positive(self, "step")
        if max(self.val_loss, self.test.loss) > _LARGEST_LOSS:
            raise ValueError(f"a loss above {_LARGEST_LOSS:g} has no perplexity")


@dataclass(frozen=True)
class _Line:
    """A line of metrics.jsonl with a training loss."""

    step: int
    loss: float
    lr: float
    tokens: int
    tokens_per_s: float
    skipped: int
    grad_norm: float | None = None

    def __post_init__(self) -> None:
        check_positive(self, "step", "tokens", "tokens_per_s")


@dataclass(frozen=True, kw_only=True)
class RunFacts(_Result):
    """The records of a finished run.

    Attributes:
        train_curve: (step, mean training loss of the steps since the line before).
        val_curve: (step, validation loss).
        seconds: spent in training steps; evaluation and checkpoints are not counted.
        step: of the weights that were scored (lowest validation loss).
        data: None where neither the run nor the data cache describes it.
        machine: the device as result.json describes it, or empty.
        finished: end of the run, in UTC.
    """

    finished: datetime.datetime  # type: ignore[assignment]
    folder: Path
    train: Settings
    model: GPTConfig
    parameters: int
    tokenizer_hash: str
    train_curve: list[tuple[int, float]]
    val_curve: list[tuple[int, float]]
    lr_curve: list[tuple[int, float]]
    grad_norms: list[float]
    skipped: int
    seconds: float

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
        return self.train.sequences_per_step * self.train.seq_len

    @property
    def tokens(self) -> int:
        """Training tokens seen."""
        return self.steps * self.tokens_per_step

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    @property
    def flops(self) -> int:
        """Model FLOPs of the whole run ("exact" convention of gpt2/training/estimate.py)."""
        return self.tokens * flops_per_token(self.model, self.train.seq_len)


def read_run(folder: Path, cache_dir: Path | None = None) -> RunFacts:
    """Read a finished run.

    Args:
        folder: a folder that `python train.py` made.
        cache_dir: of the prepared data, for a run that does not record its splits; None is the one
            that it was trained with.

    Raises:
        ValueError: not a run folder, its training has not ended, or a record is missing in it.
    """
    record = folder / "run.json"  # of the model that ships: its config.json is Hugging Face's
    train, model = read_config_file(record) if record.is_file() else read_config(folder)
    path = folder / "result.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} has no result.json: its training has not ended. Go on with "
            f"`python train.py --resume {folder}`, and report on it then."
        )
    for name in ("seq_len", "batch_size", "grad_accum"):
        if getattr(train, name) < 1:
            raise ValueError(f"{folder / 'config.json'}: {name} is {getattr(train, name)}")
    metrics = read_metrics(folder / "metrics.jsonl")
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    content = read_json_object(path)
    try:
        result = from_json(_Result, content, others=True)
        finished = _finished(result.finished, path)
        if result.data and not result.data.complete:
            raise ValueError(f"data: its splits must be {', '.join(_SPLITS)}")
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path} does not hold the result of a run: {error}") from error
    try:
        measured = [from_json(_Line, m, others=True) for m in metrics if "loss" in m]
    except ValueError as error:
        raise ValueError(f"{folder / 'metrics.jsonl'}: a line with a loss, but {error}") from error
    evaluated = [(m["step"], float(m["val_loss"])) for m in metrics if is_number(m.get("val_loss"))]
    if not measured or not evaluated:
        raise ValueError(
            f"{folder / 'metrics.jsonl'} holds no training and validation losses: without them "
            "there is no curve to report"
        )
    seconds = _seconds(measured)
    if not seconds > 0:  # more steps skipped than taken
        raise ValueError(
            f"{folder / 'metrics.jsonl'}: by its lines, training took {seconds} seconds"
        )
    data = result.data or _cached_data(
        cache_dir or Path(train.cache_dir), tokenizer.hash, result.test
    )
    known = vars(result) | {"data": data, "finished": finished}
    return RunFacts(
        **known,
        folder=folder,
        train=train,
        model=model,
        parameters=count_parameters(model),
        tokenizer_hash=tokenizer.hash,
        train_curve=[(m.step, m.loss) for m in measured],
        val_curve=evaluated,
        lr_curve=[(m.step, m.lr) for m in measured],
        grad_norms=[m.grad_norm for m in measured if m.grad_norm is not None],
        skipped=measured[-1].skipped,
        seconds=seconds,
    )


def same_tokenizer(runs: Sequence[RunFacts]) -> bool:
    """Whether losses per token can be compared."""
    return len({run.tokenizer_hash for run in runs}) == 1


def _seconds(measured: Sequence[_Line]) -> float:
    """Seconds spent in training steps, from the speed of each interval."""
    seconds, step, skipped = 0.0, 0, 0
    for line in measured:
        taken = line.step - step - (line.skipped - skipped)
        seconds += taken * (line.tokens / line.step) / line.tokens_per_s
        step, skipped = line.step, line.skipped
    return seconds


def _finished(said: str | None, path: Path) -> datetime.datetime:
    """The time in result.json, or else the time at which that file was written."""
    if said is not None:
        return datetime.datetime.fromisoformat(said).astimezone(datetime.timezone.utc)
    return datetime.datetime.fromtimestamp(int(path.stat().st_mtime), datetime.timezone.utc)


def _cached_data(cache_dir: Path, tokenizer_hash: str, test: Scored) -> Data | None:
    """The cached data with this tokenizer and the very test split that was scored."""
    for path in sorted(cache_dir.glob(f"*-{tokenizer_hash[:8]}/{MANIFEST}")):
        manifest = read_json_object(path)
        try:
            splits = {k: {**v, "bytes": v["text_bytes"]} for k, v in manifest["splits"].items()}
            source = {"name": manifest["source"]["name"], "splits": splits}
            data = from_json(Data, manifest | source, others=True)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path} is no manifest of prepared text: {error!r}") from error
        scored = data.splits["test"] if data.complete else None
        if scored and (scored.tokens, scored.bytes) == (test.tokens, test.bytes):
            return data
    return None
