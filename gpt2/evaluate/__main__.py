"""Loss, perplexity and bits per byte of a model on a text, and scores on standard tasks.

    python -m gpt2.evaluate runs/demo --data my.txt --stride 64
    python -m gpt2.evaluate runs/demo --task wikitext --data wikitext-2 --detokenise wikitext
    python -m gpt2.evaluate runs/demo --task lambada --data lambada_test.jsonl

Perplexity is comparable only between models with one tokenizer; bits per byte between any models on
one text. With the default stride, the context length, windows do not overlap. <|endoftext|>, which
stands before the text and ends every document, counts as a token and adds no bytes. The formulas
are in gpt2/evaluate/perplexity.py; the protocols of the tasks in word_perplexity.py and tasks.py.
"""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from gpt2.config import TokenType
from gpt2.evaluate.perplexity import Evaluation, evaluate

if TYPE_CHECKING:
    from gpt2.evaluate.tasks import HellaSwag, Lambada
    from gpt2.evaluate.word_perplexity import WordPerplexity
    from gpt2.runs.run import Run

Task = Literal["perplexity", "wikitext", "hellaswag", "lambada"]


@dataclass(frozen=True)
class Arguments:
    """Score a model on a text, HellaSwag or LAMBADA; the protocol is printed with the score."""

    run: Positional[str]
    """Run folder of `python train.py`; folder in Hugging Face's GPT-2 format; demo, the model that
    ships with this code; or a model of the Hugging Face hub, such as gpt2."""
    task: Task = "perplexity"
    """perplexity: of a text, with bits per byte. wikitext: per word, of a text of tokens between
    spaces, such as WikiText. hellaswag, lambada: from --data, else from the Hugging Face hub."""
    data: str | None = None
    """Text to score: what train.py's --data takes; None: what a run was trained on. For hellaswag
    and lambada: a .jsonl, .jsonl.gz or .parquet file."""
    token_type: TokenType | None = None
    """uint16 or uint32: the type of the ids in token files that do not say it."""
    split: str | None = None
    """train, valid or test. Of a text only. None: test."""
    stride: int | None = None
    """Tokens from one window to the next; smaller gives more context and takes longer. None: the
    context length, so that windows do not overlap. Of a text only."""
    detokenise: Literal["none", "wikitext", "ptb", "lm1b"] = "none"
    """With --task wikitext: undo this corpus's tokenisation before the model reads the text."""
    limit: int | None = None
    """Score only the first rows, or (with --task perplexity) about so many tokens."""
    checkpoint: str = "best"
    """Of a run folder: best, last, or the number of a step."""
    batch_size: int = 16
    """Windows, endings or passages per forward pass."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    cache_dir: str = "data"
    """Where tokenised text is kept."""
    json: bool = False
    """Print one JSON object instead of sentences."""


def main(arguments: Arguments) -> None:
    import json

    from gpt2.weights.open_model import open_model

    _check(arguments)
    run = open_model(arguments.run, checkpoint=arguments.checkpoint, device=arguments.device)
    what, result = _score(arguments, run)
    if arguments.json:
        about = {"task": arguments.task, "what": what, "step": run.step}
        print(json.dumps(about | dataclasses.asdict(result)))
        return
    print(f"{run} on {what}: {result}")
    if not isinstance(result, Evaluation):  # which says its own
        print(f"protocol: {result.protocol}")


def _check(arguments: Arguments) -> None:
    """Refuse options that the task would ignore."""
    task = arguments.task
    if arguments.limit is not None and task == "wikitext":
        raise ValueError("--task wikitext counts the words of the whole split: leave out --limit")
    if arguments.token_type is not None and task != "perplexity":
        raise ValueError(f"--task {task} reads text, not token ids: leave out --token-type")
    if arguments.stride is not None and task not in ("perplexity", "wikitext"):
        raise ValueError(f"--task {task} has no windows that slide: leave out --stride")
    if arguments.split is not None and task not in ("perplexity", "wikitext"):
        raise ValueError(f"--task {task} is of one split: leave out --split")
    if arguments.detokenise != "none" and task != "wikitext":
        raise ValueError(f"--detokenise goes with --task wikitext, not with --task {task}")


def _score(
    arguments: Arguments, run: "Run"
) -> "tuple[str, Evaluation | WordPerplexity | HellaSwag | Lambada]":
    """Describe what is scored, and score it."""
    split = arguments.split or "test"
    common: dict[str, Any] = {"batch_size": arguments.batch_size, "progress": not arguments.json}
    if arguments.task == "perplexity":
        from gpt2.data.prepare import prepare

        prepared = prepare(
            **run.choose_data(arguments.data, arguments.token_type),
            tokenizer=str(run.folder),
            cache_dir=Path(arguments.cache_dir),
        )
        print("\n".join(prepared.notes), file=sys.stderr)
        if split not in prepared.splits:
            have = ", ".join(prepared.splits)
            raise ValueError(f"{prepared.name} has no split {split!r}; it has {have}")
        return f"{prepared.name}, {split}", evaluate(
            run.model,
            prepared.splits[split],
            bos_id=run.tokenizer.eot_id,
            stride=arguments.stride,
            max_tokens=arguments.limit,
            **common,
        )
    if arguments.task == "wikitext":
        from gpt2.data.sources import open_source
        from gpt2.evaluate.word_perplexity import read_documents, word_perplexity

        data = run.choose_data(arguments.data, None)["data"]
        source = open_source(data, cache_dir=Path(arguments.cache_dir))
        print("\n".join(source.notes), file=sys.stderr)
        return f"{data}, {split}", word_perplexity(
            run.model,
            run.tokenizer,
            read_documents(source, split),
            rules=arguments.detokenise,
            stride=arguments.stride,
            **common,
        )
    from gpt2.evaluate.tasks import hellaswag, lambada, read_rows

    rows = read_rows(arguments.data, arguments.task, limit=arguments.limit)
    scorer = hellaswag if arguments.task == "hellaswag" else lambada
    where = arguments.data or "the hub's copy"
    return f"{arguments.task} ({where})", scorer(run.model, run.tokenizer, rows, **common)


if __name__ == "__main__":
    from gpt2.common.cli import run_tool

    run_tool(main, Arguments)
