"""Reads and checks the files of other tools: decoding, sizes, benchmarks."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2.common.json_files import from_json, read_json_object
from gpt2.compare_decoding.measures import Measures
from gpt2.report.sources import check_positive


@dataclass(frozen=True)
class _About:
    data: str
    split: str
    prompts: int
    max_tokens: int
    findings: list[str]
    prompt: str
    texts: dict[str, str]
    min_p: bool
    penalty: bool


@dataclass(frozen=True)
class Decoding(_About):
    """Continuations of held-out prompts, by their authors and by each strategy.

    Attributes:
        prompt: the one in the middle of the list.
        texts: its continuations by the author and by each strategy.
        min_p, penalty: true if a strategy uses min-p, or a repetition penalty.
    """

    human: Measures
    strategies: dict[str, Measures]


@dataclass(frozen=True)
class Size:
    """A model size, its training and its scores; see `gpt2.compare_sizes`.

    Attributes:
        tokens: trained on.
        seconds: in training steps; validation and checkpoints are not counted.
        tokens_per_s: tokens / seconds.
        peak_memory_bytes: see `Sizes.memory`; None where it was not measured.
        flops: of the training, forward and backward.
        test_loss: nats per token, over the whole test split, as are the two after it.
        val_curve: (tokens, validation loss) over the training.
        samples: continuations, by prompt.
    """

    name: str
    parameters: int
    tokens: int
    seconds: float
    tokens_per_s: float
    peak_memory_bytes: int | None
    flops: int
    test_loss: float
    test_perplexity: float
    test_bits_per_byte: float
    val_curve: list[tuple[int, float]]
    samples: dict[str, str]

    def __post_init__(self) -> None:
        check_positive(self, "parameters", "tokens", "seconds", "tokens_per_s", "flops")
        if not self.val_curve:
            raise ValueError(f"the size {self.name} has no val_curve")


@dataclass(frozen=True)
class Sizes:
    """Sizes trained on the same tokens, smallest first; the strings say how each was measured."""

    data: str
    tokens: int
    device: str
    memory: str
    test: str
    sampling: str
    rows: list[Size]

    def __post_init__(self) -> None:
        prompts = [list(size.samples) for size in self.rows]
        if not any(prompts) or any(own != prompts[0] for own in prompts):
            raise ValueError("its rows need samples, all of the same prompts")


@dataclass(frozen=True)
class Contest:
    """Our fastest variant of a case against the fastest other; times in seconds, medians."""

    bench: str
    case: str
    ours: str
    our_seconds: float
    other: str
    other_seconds: float

    def __post_init__(self) -> None:
        check_positive(self, "our_seconds", "other_seconds")

    @property
    def speedup(self) -> float:
        return self.other_seconds / self.our_seconds


@dataclass(frozen=True)
class Limits:
    """The device's limits as the benchmark measured them."""

    matmul_tflops: float
    matmul_dtype: str
    copy_gbps: float


@dataclass(frozen=True)
class _BenchRow:
    bench: str
    case: dict[str, str | int | float | bool | None]
    variant: str
    status: str
    ours: bool
    seconds: dict[str, float] | None

    @property
    def median(self) -> float:
        if self.seconds is None or "median" not in self.seconds:
            raise ValueError(f"seconds: {self.variant} of {self.bench} has no median")
        return self.seconds["median"]


@dataclass(frozen=True)
class Bench:
    """A benchmark's results on one device."""

    device: str
    date: str
    commit: str
    limits: Limits
    rows: int
    failed: int
    contests: list[Contest]


def read_decoding(path: Path) -> Decoding:
    """Read the decoding.json of `python -m gpt2.compare_decoding`.

    Raises:
        ValueError: no such file, or an entry is missing in it.
    """
    content = read_json_object(path)
    try:
        rows = {str(row["name"]): _measures(row) for row in content["rows"]}
        human = rows.pop("human")
        if not rows:
            raise ValueError("no strategy beside the human text")
        texts = dict(content["texts"][len(content["texts"]) // 2])
        sampling = [row.get("sampling") or {} for row in content["rows"]]
        derived = {
            "prompt": texts.pop("prompt"),
            "texts": texts,
            "min_p": any(settings.get("min_p") is not None for settings in sampling),
            "penalty": any(settings.get("repetition_penalty", 1) != 1 for settings in sampling),
        }
        about = from_json(_About, content | derived, others=True)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} does not hold a comparison of decoding strategies: {error!r}"
        ) from error
    return Decoding(**vars(about), human=human, strategies=rows)


def _measures(row: dict[str, Any]) -> Measures:
    values = {name: math.nan if value is None else value for name, value in row.items()}
    return from_json(Measures, values, others=True, finite=False)


def read_sizes(path: Path) -> Sizes:
    """Read the sizes.json of `python -m gpt2.compare_sizes`.

    Raises:
        ValueError: no such file, or something is missing in it.
    """
    content = read_json_object(path)
    try:
        return from_json(Sizes, content, others=True)
    except ValueError as error:
        raise ValueError(f"{path} does not hold a comparison of sizes: {error}") from error


def read_bench(path: Path) -> Bench:
    """Read bench/results/<device>/<date>-<commit>.json.

    Raises:
        ValueError: no such file, or not one of a benchmark.
    """
    content = read_json_object(path)
    try:
        rows = [from_json(_BenchRow, row, others=True) for row in content["rows"]]
        cases: dict[tuple[str, str], list[_BenchRow]] = {}
        for row in rows:
            if row.status == "ok":
                cases.setdefault((row.bench, json.dumps(row.case)), []).append(row)
        contests = [_contest(own) for own in cases.values() if len({r.ours for r in own}) > 1]
        if not contests:
            raise ValueError("no case in which our code and another were both timed")
        return Bench(
            device=str(content["device"]),
            date=str(content["date"]),
            commit=str(content["commit"]),
            limits=from_json(Limits, content["limits"], others=True),
            rows=len(rows),
            failed=sum(row.status == "failed" for row in rows),
            contests=contests,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not hold the results of a benchmark: {error!r}") from error


def _contest(rows: list[_BenchRow]) -> Contest:
    ours = min((row for row in rows if row.ours), key=lambda row: row.median)
    other = min((row for row in rows if not row.ours), key=lambda row: row.median)
    return Contest(
        bench=ours.bench,
        case=_words(ours.case),
        ours=ours.variant,
        our_seconds=ours.median,
        other=other.variant,
        other_seconds=other.median,
    )


def _words(case: dict[str, Any]) -> str:
    """{"T": 1024, "pass": "forward", "packed": true} as "T 1024, forward, packed"."""
    words = []
    for name, value in case.items():
        if isinstance(value, str):
            words.append(value)
        elif value is True:
            words.append(name)
        elif value is not None and value is not False:
            words.append(f"{name} {value:,}" if isinstance(value, int) else f"{name} {value:g}")
    return ", ".join(words)
