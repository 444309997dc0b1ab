"""What result.json, written at the end of a run, says of its weights."""

from dataclasses import dataclass

from gpt2.common.json_files import from_json, read_json_object
from gpt2.runs.run import Run


@dataclass(frozen=True)
class Score:
    """Scores of the test split in nats per token, and their protocol
    (`gpt2.evaluate.perplexity`)."""

    loss: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    context: int
    stride: int


@dataclass(frozen=True)
class Size:
    """Size of a split; `bytes` of UTF-8 text."""

    tokens: int
    documents: int
    bytes: int


@dataclass(frozen=True)
class Text:
    """The text of a run: its name, how splits were held out, in words, and their sizes."""

    name: str
    held_out: str
    splits: dict[str, Size]


@dataclass(frozen=True)
class Result:
    """The entries of a result.json that tell of weights and text."""

    step: int
    val_loss: float | None = None
    test: Score | None = None
    data: Text | None = None


def read_result(run: Run) -> Result | None:
    """Read a run's result.json, if there is one, of these weights.

    Raises:
        ValueError: the file holds something else.
    """
    path = run.folder / "result.json"
    if not path.is_file():
        return None
    try:
        result = from_json(Result, read_json_object(path), others=True, finite=False)
    except ValueError as error:
        raise ValueError(f"{path} does not hold the result of a run: {error}") from error
    return result if result.step == run.step else None
