"""The files of the other tools: strategies and sizes compared, benchmarks; read and checked."""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2.report.sources import read_json


@dataclass(frozen=True)
class Measures:
    """The texts of one strategy, or of the authors, as gpt2/compare_decoding.py measures them.

    Shares are in [0, 1]; nan where nothing could be measured.
    """

    perplexity: float
    distinct_1: float
    distinct_2: float
    distinct_3: float
    repetition_4: float
    self_bleu_4: float
    mean_words: float
    ended: float
    copied_8: float


@dataclass(frozen=True)
class Decoding:
    """Continuations of held-out prompts, by their authors and by each strategy.

    Attributes:
        prompt: the one in the middle of the list.
        texts: how its author and each strategy go on from it.
        min_p, penalty: whether a strategy uses min-p, or a repetition penalty.
    """

    data: str
    split: str
    prompts: int
    max_tokens: int
    human: Measures
    strategies: dict[str, Measures]
    findings: list[str]
    prompt: str
    texts: dict[str, str]
    min_p: bool
    penalty: bool


@dataclass(frozen=True)
class Size:
    """A model size and what it came to; see gpt2/compare_sizes_results.py."""

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


@dataclass(frozen=True)
class Sizes:
    """Sizes trained on the same tokens, smallest first; the strings say how figures were got."""

    data: str
    tokens: int
    device: str
    memory: str
    test: str
    sampling: str
    rows: list[Size]


@dataclass(frozen=True)
class Contest:
    """Our fastest variant of a case against the fastest other; times in seconds, medians."""

    bench: str
    case: str
    ours: str
    our_seconds: float
    other: str
    other_seconds: float

    @property
    def speedup(self) -> float:
        return self.other_seconds / self.our_seconds


@dataclass(frozen=True)
class Bench:
    """A benchmark's results on one device. `limits` are those that it measured itself."""

    device: str
    date: str
    commit: str
    limits: dict[str, Any]
    rows: int
    failed: int
    contests: list[Contest]


def read_decoding(path: Path) -> Decoding:
    """Read the decoding.json of `python -m gpt2.compare_decoding`.

    Raises:
        ValueError: no such file, or something is missing in it.
    """
    content = read_json(path)
    names = [field.name for field in dataclasses.fields(Measures)]
    try:
        rows = {
            str(row["name"]): Measures(
                **{name: math.nan if row[name] is None else float(row[name]) for name in names}
            )
            for row in content["rows"]
        }
        example = content["texts"][len(content["texts"]) // 2]
        texts = {str(name): str(text) for name, text in example.items()}
        sampling = [row.get("sampling") or {} for row in content["rows"]]
        return Decoding(
            data=str(content["data"]),
            split=str(content["split"]),
            prompts=int(content["prompts"]),
            max_tokens=int(content["max_tokens"]),
            human=rows.pop("human"),
            strategies=rows,
            findings=[str(sentence) for sentence in content["findings"]],
            prompt=texts.pop("prompt"),
            texts=texts,
            min_p=any(settings.get("min_p") is not None for settings in sampling),
            penalty=any(settings.get("repetition_penalty", 1) != 1 for settings in sampling),
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} does not hold a comparison of decoding strategies: {error!r}"
        ) from error


def read_sizes(path: Path) -> Sizes:
    """Read the sizes.json of `python -m gpt2.compare_sizes`.

    Raises:
        ValueError: no such file, or something is missing in it.
    """
    content = read_json(path)
    try:
        rows = [Size(**_picked(Size, row)) for row in content["rows"]]
        return Sizes(**{**_picked(Sizes, content), "rows": rows})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not hold a comparison of sizes: {error!r}") from error


def read_bench(path: Path) -> Bench:
    """Read bench/results/<device>/<date>-<commit>.json.

    Raises:
        ValueError: no such file, or not one of a benchmark.
    """
    content = read_json(path)
    try:
        cases: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in content["rows"]:
            if row["status"] == "ok":
                key = str(row["bench"]), json.dumps(row["case"])
                cases.setdefault(key, []).append(row)
        contests = [_contest(rows) for rows in cases.values() if len({r["ours"] for r in rows}) > 1]
        if not contests:
            raise ValueError("no case in which our code and another were both timed")
        return Bench(
            device=str(content["device"]),
            date=str(content["date"]),
            commit=str(content["commit"]),
            limits=dict(content["limits"]),
            rows=len(content["rows"]),
            failed=sum(row["status"] == "failed" for row in content["rows"]),
            contests=contests,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not hold the results of a benchmark: {error!r}") from error


def _picked(kind: type[Any], content: dict[str, Any]) -> dict[str, Any]:
    """The fields of a dataclass, other entries left out."""
    return {field.name: content[field.name] for field in dataclasses.fields(kind)}


def _contest(rows: list[dict[str, Any]]) -> Contest:
    def fastest(ours: bool) -> dict[str, Any]:
        return min(
            (row for row in rows if row["ours"] is ours), key=lambda r: r["seconds"]["median"]
        )

    ours, other = fastest(True), fastest(False)
    return Contest(
        bench=str(ours["bench"]),
        case=_words(ours["case"]),
        ours=str(ours["variant"]),
        our_seconds=float(ours["seconds"]["median"]),
        other=str(other["variant"]),
        other_seconds=float(other["seconds"]["median"]),
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
