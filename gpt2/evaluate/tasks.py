"""HellaSwag and LAMBADA, and the protocol of each score.

HellaSwag (Zellers et al. 2019, arXiv:1905.07830): which of four endings is the most probable. `acc`
takes the sum of log p, `acc_norm` divides it by the characters of the ending, as EleutherAI's
lm-eval does. The figures of build-nanogpt and llm.c divide by tokens and leave the activity out:
not comparable.

LAMBADA (Paperno et al. 2016, arXiv:1606.06031) in OpenAI's plain-text form: predict a passage's
last word. Two protocols go under the one name:

    word   all tokens of the word must be greedy, and perplexity is exp of the mean -log p(word):
           lm-eval's lambada_openai (it gives GPT-2 124M 32.56% and 40.06)
    token  the word's last token alone counts, its others being given: OpenAI's, by which Radford
           et al. 2019 have 45.99% for the same model (openai/gpt-2#131). It depends on the
           vocabulary: the smaller it is, the more of the word is given

The paper's stop-word filter is left out: neither its list nor its procedure was published.
"""

import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gpt2.data.readers import read_records
from gpt2.evaluate.perplexity import to_perplexity
from gpt2.evaluate.scoring import Request, score
from gpt2.model import GPT
from gpt2.tokenizer import Tokenizer

Row = dict[str, Any]
TaskName = Literal["hellaswag", "lambada"]

# Repository, configuration and split on the Hugging Face hub.
_HUB: dict[TaskName, tuple[str, str | None, str]] = {
    "hellaswag": ("Rowan/hellaswag", None, "validation"),
    "lambada": ("EleutherAI/lambada_openai", "default", "test"),
}


@dataclass(frozen=True)
class HellaSwag:
    """Accuracies in [0, 1]; a `_stderr` is sqrt(p (1 - p) / (n - 1)). Chance is 0.25."""

    acc: float
    acc_stderr: float
    acc_norm: float
    acc_norm_stderr: float
    rows: int
    protocol: str

    def __str__(self) -> str:
        return (
            f"acc {_percent(self.acc, self.acc_stderr)}, "
            f"acc_norm {_percent(self.acc_norm, self.acc_norm_stderr)} ({self.rows:,} rows)"
        )


@dataclass(frozen=True)
class Lambada:
    """Accuracies in [0, 1] and perplexities, of the last word and of its last token."""

    word_acc: float
    word_acc_stderr: float
    word_perplexity: float
    token_acc: float
    token_acc_stderr: float
    token_perplexity: float
    rows: int
    protocol: str

    def __str__(self) -> str:
        return (
            f"word: acc {_percent(self.word_acc, self.word_acc_stderr)}, perplexity "
            f"{self.word_perplexity:,.2f}; token: acc "
            f"{_percent(self.token_acc, self.token_acc_stderr)}, perplexity "
            f"{self.token_perplexity:,.2f} ({self.rows:,} rows)"
        )


def hellaswag(
    model: GPT,
    tokenizer: Tokenizer,
    rows: Iterable[Row],
    *,
    batch_size: int,
    progress: bool = False,
) -> HellaSwag:
    """Score HellaSwag, `batch_size` endings per forward pass.

    Args:
        rows: with "activity_label", "endings" (4) and "label" (0-3), and either "ctx_a" and "ctx_b"
            as in the original file, or "ctx" alone, as in a file that is already cleaned.

    Raises:
        ValueError: a row is not of this form, or there is none.
    """
    requests: list[Request] = []
    lengths: list[list[int]] = []
    labels: list[int] = []
    cleaned = 0
    for number, row in enumerate(rows, start=1):
        with _as_a_row_of("HellaSwag", number):
            query, endings, label = _hellaswag_texts(row)
        cleaned += "ctx_a" not in row
        requests += [_request(tokenizer, query, f" {ending}") for ending in endings]
        lengths.append([len(ending) for ending in endings])
        labels.append(label)
    if not labels:
        raise ValueError("there is nothing to evaluate: no rows of HellaSwag")
    scores = score(model, requests, batch_size=batch_size, progress=progress)
    total = np.array([s.total for s in scores]).reshape(-1, 4)
    right = total.argmax(axis=1) == labels
    right_norm = (total / np.array(lengths)).argmax(axis=1) == labels
    form = "rows cleaned beforehand" if cleaned else "original rows, cleaned as lm-eval does"
    return HellaSwag(
        acc=float(right.mean()),
        acc_stderr=_stderr(right),
        acc_norm=float(right_norm.mean()),
        acc_norm_stderr=_stderr(right_norm),
        rows=len(labels),
        protocol=(
            "lm-eval's: 0-shot, 'activity: context', a space, the ending; acc by the sum of log p "
            "over the ending's tokens, acc_norm by that sum per character of the ending; chance is "
            f"25%; {form}; context {model.config.block_size}, longer texts cut at their beginning"
        ),
    )


def lambada(
    model: GPT,
    tokenizer: Tokenizer,
    rows: Iterable[Row],
    *,
    batch_size: int,
    progress: bool = False,
) -> Lambada:
    """Score LAMBADA by both protocols, `batch_size` passages per forward pass.

    Args:
        rows: with "context" and "continuation", or with "text", whose last word is asked for.

    Raises:
        ValueError: a row is not of this form, or there is none.
    """
    requests: list[Request] = []
    for number, row in enumerate(rows, start=1):
        with _as_a_row_of("LAMBADA", number):
            context, word = _lambada_texts(row)
        requests.append(_request(tokenizer, context, f" {word}"))
    if not requests:
        raise ValueError("there is nothing to evaluate: no rows of LAMBADA")
    scores = score(model, requests, batch_size=batch_size, progress=progress)
    word_right = np.array([s.greedy.all() for s in scores])
    token_right = np.array([s.greedy[-1] for s in scores])
    return Lambada(
        word_acc=float(word_right.mean()),
        word_acc_stderr=_stderr(word_right),
        word_perplexity=to_perplexity(-float(np.mean([s.total for s in scores]))),
        token_acc=float(token_right.mean()),
        token_acc_stderr=_stderr(token_right),
        token_perplexity=to_perplexity(-float(np.mean([s.logprob[-1] for s in scores]))),
        rows=len(requests),
        protocol=(
            "word: all tokens of the last word greedy, perplexity of the whole word, as lm-eval's "
            "lambada_openai; token: the last token of the last word alone, its others given, as "
            f"OpenAI's figures; no stop-word filter; context {model.config.block_size}, longer "
            "texts cut at their beginning"
        ),
    )


def read_rows(path: str | None, task: TaskName, *, limit: int | None = None) -> Iterator[Row]:
    """Read the first `limit` rows of a table (`gpt2.data.readers`) or, without a path, of the hub.

    Raises:
        ValueError: the file is none, or the hub does not give the data.
    """
    return islice(_hub_rows(task) if path is None else _file_rows(Path(path)), limit)


def _file_rows(path: Path) -> Iterator[Row]:
    if not path.is_file():
        raise ValueError(f"--data {path}: no such file; give the task's rows as .jsonl or .parquet")
    yield from (row for row, _, _ in read_records(path))


def _hub_rows(task: TaskName) -> Iterator[Row]:
    repository, config, split = _HUB[task]
    remedy = f"Or give a local file: --data path/to/{task}.jsonl"
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ValueError(
            f"--task {task} without --data reads {repository} from the Hugging Face hub, which "
            f"needs the library `datasets`: pip install -e '.[hub]'. {remedy}"
        ) from error
    try:
        yield from load_dataset(repository, config, split=split, streaming=True)
    # Any of several libraries may fail here; whichever it is, the advice is the same.
    except Exception as error:
        raise ValueError(
            f"--task {task}: reading {repository} from the hub failed: {error}. {remedy}"
        ) from error


def _hellaswag_texts(row: Row) -> tuple[str, list[str], int]:
    if "ctx_a" in row:
        context = f"{row['ctx_a']} {row['ctx_b'].capitalize()}"
        query = _clean(f"{row['activity_label']}: {context}")
        endings = [_clean(ending) for ending in row["endings"]]
    else:
        query = f"{row['activity_label']}: {row['ctx']}".strip()
        endings = [ending.strip() for ending in row["endings"]]
    label = int(row["label"])
    if len(endings) != 4 or not all(endings) or not 0 <= label < 4:
        raise ValueError("there must be four endings that are not empty, and a label of 0 to 3")
    return query, endings, label


def _clean(text: str) -> str:
    """Remove the markers of WikiHow's pages, as lm-eval does."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def _lambada_texts(row: Row) -> tuple[str, str]:
    if "text" in row:
        context, _, word = row["text"].rpartition(" ")
    else:
        context, word = row["context"].rstrip(" "), row["continuation"].strip(" ")
    if not context.strip() or not word:
        raise ValueError("neither the context nor the last word may be empty")
    return context, word


@contextmanager
def _as_a_row_of(task: str, number: int) -> Iterator[None]:
    try:
        yield
    except KeyError as error:
        raise ValueError(f"row {number:,} is not of {task}: it has no field {error}") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"row {number:,} is not of {task}: {error}") from error


def _request(tokenizer: Tokenizer, context: str, continuation: str) -> Request:
    """Ask for the continuation, to which, as in lm-eval, spaces that end the context belong."""
    before = tokenizer.encode(context.rstrip())
    whole = tokenizer.encode(context + continuation)
    return Request([*before, *whole[len(before) :]], first=len(before))


def _stderr(right: NDArray[np.bool_]) -> float:
    p = float(right.mean())
    return math.sqrt(p * (1 - p) / max(len(right) - 1, 1))


def _percent(p: float, stderr: float) -> str:
    return f"{p:.2%} +- {stderr:.2%}"
