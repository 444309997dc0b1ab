"""What a comparison of sizes found: its figures, read from its run folders, and its samples."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gpt2.common.devices import choose_device
from gpt2.common.json_files import from_json, read_json_object
from gpt2.data.prepare import Prepared
from gpt2.generate.decoding import continuations
from gpt2.generate.sampling import Sampling
from gpt2.report.result_files import Size, Sizes
from gpt2.report.sources import read_run
from gpt2.runs.run import load_run
from gpt2.tokenizer import Tokenizer

_RESULT = "result.json"
_FLOPS = (
    "forward and backward of all training tokens, convention 'exact' of gpt2/training/estimate.py: "
    "6 (matrix weights, head included) + 6 L C (T + 1) per token"
)
_SAMPLING = "nucleus sampling, p = 0.9, temperature 1"
_PROMPTS, _PROMPT_TOKENS = 3, 12
_SEARCHED = 20_000  # tokens of the test split, in which beginnings are looked for


@dataclass(frozen=True)
class _Memory:
    """What a result.json says of the memory that training took."""

    peak_memory_bytes: int | None = None
    memory: str = "not measured"


@dataclass(frozen=True)
class Row(Size):
    """A size with the details of its training.

    Attributes:
        step: of the weights with the lowest validation loss, which is `val_loss`; they were tested.
    """

    n_layer: int
    n_head: int
    n_embd: int
    lr: float
    step: int
    val_loss: float


@dataclass(frozen=True)
class Comparison(Sizes):
    """The sizes, smallest first, and what they share."""

    rows: list[Row]  # type: ignore[assignment]
    tokens_per_step: int
    context: int
    vocab_size: int
    tokenizer_hash: str
    optimizer: str
    flops: str


def is_finished(folder: Path) -> bool:
    """Whether a run has come to its end, and left its figures."""
    return (folder / _RESULT).is_file()


def beginnings(prepared: Prepared) -> list[str]:
    """The first whole words of some documents of the test split."""
    tokenizer, split = prepared.tokenizer, prepared.splits["test"]
    ids = split.read(0, min(_SEARCHED, len(split))).tolist()
    texts = []
    for start in (0, *(i + 1 for i, token in enumerate(ids) if token == tokenizer.eot_id)):
        document = ids[start : start + _PROMPT_TOKENS + 1]
        if len(document) > _PROMPT_TOKENS and tokenizer.eot_id not in document:
            text = tokenizer.decode(document[:-1])
            texts.append(text.rpartition(" ")[0] or text)
    return texts[:_PROMPTS] or [""]


def encode_prompts(
    texts: Iterable[str], tokenizer: Tokenizer, *, context: int
) -> dict[str, list[int]]:
    """Token ids of prompts; those of an empty one begin a new document.

    Raises:
        ValueError: a prompt is longer than `context`.
    """
    prompts = {text: tokenizer.encode_prompt(text) for text in texts}
    for text, ids in prompts.items():
        if len(ids) > context:
            raise ValueError(
                f"the prompt that begins {text[:30]!r} has {len(ids)} tokens, and the models will "
                f"see {context}: shorten it, or raise --seq-len"
            )
    return prompts


def compare(
    folders: Mapping[str, Path],
    prompts: Mapping[str, Sequence[int]],
    *,
    data: str,
    device: str,
    sample_tokens: int,
) -> Comparison:
    """Read finished runs that share all but their size, and have each continue the prompts.

    Folders come by the name of the size, prompts as token ids by their text; samples have at most
    `sample_tokens` new tokens.
    """
    rows = [
        _row(name, folder, _samples(folder, prompts, device, sample_tokens))
        for name, folder in folders.items()
    ]
    folder = next(iter(folders.values()))
    run = read_run(folder)
    train, test = run.train, run.test
    return Comparison(
        data=data,
        tokens=rows[0].tokens,
        tokens_per_step=rows[0].tokens // (train.steps or 1),
        context=train.seq_len,
        vocab_size=run.model.vocab_size,
        tokenizer_hash=run.tokenizer_hash,
        optimizer=train.optimizer,
        device=_device_name(device),
        flops=_FLOPS,
        memory=", ".join(sorted({_memory(f).memory for f in folders.values()})),
        test=f"{test.tokens:,} tokens = {test.bytes:,} bytes scored once each, context "
        f"{test.context}, stride {test.stride}",
        sampling=f"{_SAMPLING}, seed {train.seed}, at most {sample_tokens} tokens",
        rows=sorted(rows, key=lambda row: row.parameters),
    )


def _row(name: str, folder: Path, samples: dict[str, str]) -> Row:
    run = read_run(folder)
    model, test = run.model, run.test
    return Row(
        name=name,
        n_layer=model.n_layer,
        n_head=model.n_head,
        n_embd=model.n_embd,
        parameters=run.parameters,
        lr=run.train.lr,
        tokens=run.tokens,
        seconds=run.seconds,
        tokens_per_s=run.tokens_per_s,
        peak_memory_bytes=_memory(folder).peak_memory_bytes,
        flops=run.flops,
        step=run.step,
        val_loss=run.val_loss,
        test_loss=test.loss,
        test_perplexity=test.perplexity,
        test_bits_per_byte=test.bits_per_byte,
        val_curve=[(step * run.tokens_per_step, loss) for step, loss in run.val_curve],
        samples=samples,
    )


def _samples(
    folder: Path, prompts: Mapping[str, Sequence[int]], device: str, tokens: int
) -> dict[str, str]:
    run = load_run(folder, device=device)
    assert run.config is not None
    where = next(run.model.parameters()).device
    made = continuations(
        run.model,
        list(prompts.values()),
        tokens,
        sampling=Sampling(top_p=0.9),
        generator=[torch.Generator(where).manual_seed(run.config.seed) for _ in prompts],
        stop_id=run.tokenizer.eot_id,
    )
    return {text: run.tokenizer.decode(new) for text, new in zip(prompts, made, strict=True)}


def _memory(folder: Path) -> _Memory:
    path = folder / _RESULT
    try:
        return from_json(_Memory, read_json_object(path).get("machine", {}), others=True)
    except ValueError as error:
        raise ValueError(f"{path} does not say what memory a run took: {error}") from error


def _device_name(asked: str) -> str:
    device, _ = choose_device(asked)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type}, {threads} thread{'' if threads == 1 else 's'}"
