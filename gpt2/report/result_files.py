"""Reads and checks the files of other tools: decoding, sizes, benchmarks."""

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from gpt2.common.json_files import from_json, read_json_object
from gpt2.compare_decoding.measures import Measures
from gpt2.report.sources import check_positive

T = TypeVar("T")


@dataclass(frozen=True)
class Decoding:
    """Continuations of held-out prompts, by their authors and by each strategy.

    Attributes:
        human, strategies: the measures of each.
        prompt: the one in the middle of the list.
        texts: its continuations by the author and by each strategy.
        min_p, penalty: true if a strategy uses min-p, or a repetition penalty.
    """

    data: str
    split: str
    prompts: int
    max_tokens: int
    findings: list[str]
    human: Measures
    strategies: dict[str, Measures]
    prompt: str
    texts: dict[str, str]
    min_p: bool
    penalty: bool


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
class Limits:
    """The device's limits as the benchmark measured them."""

    matmul_tflops: float
    matmul_dtype: str
    copy_gbps: float


@dataclass(frozen=True)
class Timing:
    """A variant of a benchmark's case; `seconds` is None unless its status is "ok"."""

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
class Contest:
    """Our fastest variant of a case against the fastest other."""

    ours: Timing
    other: Timing

    def __post_init__(self) -> None:
        check_positive(self.ours, "median")
        check_positive(self.other, "median")

    @property
    def speedup(self) -> float:
        return self.other.median / self.ours.median


@dataclass(frozen=True)
class Bench:
    """A benchmark's results on one device."""

    device: str
    date: str
    commit: str
    limits: Limits
    rows: list[Timing]

    def __post_init__(self) -> None:
        if not self.contests:
            raise ValueError("no case in which our code and another were both timed")

    @cached_property
    def contests(self) -> list[Contest]:
        cases: dict[tuple[str, str], list[Timing]] = {}
        for row in self.rows:
            if row.status == "ok":
                cases.setdefault((row.bench, json.dumps(row.case)), []).append(row)
        contests = []
        for rows in cases.values():
            ours, others = [r for r in rows if r.ours], [r for r in rows if not r.ours]
            if ours and others:
                fastest = (min(some, key=lambda row: row.median) for some in (ours, others))
                contests.append(Contest(*fastest))
        return contests


def read_decoding(path: Path) -> Decoding:
    """Read the decoding.json of `python -m gpt2.compare_decoding`; ValueError if it is none."""
    content = read_json_object(path)
    try:
        rows = {
            str(row["name"]): {k: math.nan if v is None else v for k, v in row.items()}
            for row in content["rows"]
        }
        human = rows.pop("human")
        if not rows:
            raise ValueError("no strategy beside the human text")
        texts = dict(content["texts"][len(content["texts"]) // 2])
        sampling = [row.get("sampling") or {} for row in content["rows"]]
        derived = {
            "human": human,
            "strategies": rows,
            "prompt": texts.pop("prompt"),
            "texts": texts,
            "min_p": any(settings.get("min_p") is not None for settings in sampling),
            "penalty": any(settings.get("repetition_penalty", 1) != 1 for settings in sampling),
        }
        return from_json(Decoding, content | derived, others=True, finite=False)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} does not hold a comparison of decoding strategies: {error!r}"
        ) from error


def read_sizes(path: Path) -> Sizes:
    """Read the sizes.json of `python -m gpt2.compare_sizes`; ValueError if it is none."""
    return _read(Sizes, path, "a comparison of sizes")


def read_bench(path: Path) -> Bench:
    """Read bench/results/<device>/<date>-<commit>.json; ValueError if it is none."""
    return _read(Bench, path, "the results of a benchmark")


def _read(kind: type[T], path: Path, what: str) -> T:
    content = read_json_object(path)
    try:
        return from_json(kind, content, others=True)
    except ValueError as error:
        raise ValueError(f"{path} does not hold {what}: {error}") from error
