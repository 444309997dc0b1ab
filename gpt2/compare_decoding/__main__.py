"""How decoding strategies change fluency and diversity, with the text itself as the measure.

    python -m gpt2.compare_decoding runs/demo --prompts 100

Every strategy continues held-out prompts. The continuations are measured beside the text's own, the
row `human` (even of TinyStories, which a model wrote). Fluency is the model's own perplexity of the
continuation under its whole distribution at temperature 1, whatever the strategy drew from: a low
one means that the model expects the text, not that the text is good.
Diversity and repetition are measured on words (gpt2/compare_decoding/text_metrics.py), distinct-n
over the same number of n-grams in every row, as it falls with length.

Written to RUN/decoding, or --out: decoding.json with all figures and texts, decoding.md, and
decoding.png and .svg.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tyro.conf import Positional

from gpt2.common.progress import progress_bar
from gpt2.compare_decoding.measures import HUMAN, Continuations, analyse, measure, ngram_budget
from gpt2.compare_decoding.report import table, write_report
from gpt2.compare_decoding.text_metrics import CopySearch, words
from gpt2.config import TokenType
from gpt2.data.prepare import prepare
from gpt2.data.shards import TokenStream
from gpt2.evaluate.scoring import Request, score
from gpt2.generate.decoding import continuations
from gpt2.generate.sampling import Sampling
from gpt2.runs.run import Run
from gpt2.tokenizer import Tokenizer
from gpt2.weights.open_model import open_model

STRATEGIES: Mapping[str, Sampling] = {
    "greedy": Sampling(temperature=0),
    "t = 0.7": Sampling(temperature=0.7),
    "t = 1": Sampling(temperature=1),
    "top-k 50": Sampling(top_k=50),
    "top-p 0.9": Sampling(top_p=0.9),
    "min-p 0.1": Sampling(min_p=0.1),
    "greedy, penalty 1.2": Sampling(temperature=0, repetition_penalty=1.2),
}
COPY_WORDS = 8
_SPLIT_TOKENS = 1 << 24  # of the split, from its beginning, among which prompts are chosen
_SHORTEST = 8  # tokens of human text that must follow a prompt


@dataclass(frozen=True)
class Prompt:
    """Token ids of the beginning of a text, and of the author's continuation."""

    ids: list[int]
    human: list[int]


def choose_prompts(
    stream: TokenStream, tokenizer: Tokenizer, *, count: int, prompt_tokens: int, max_tokens: int
) -> list[Prompt]:
    """Prompts spread evenly over a split, each some `prompt_tokens` tokens and whole words.

    Where there are enough documents, a prompt is the beginning of one, after <|endoftext|>; where
    there are not, it is the beginning of a line.

    Raises:
        ValueError: the split has no room for so many.
    """
    ids = stream.read(0, min(len(stream), _SPLIT_TOKENS))
    vocabulary = [tokenizer.decode_bytes([i]) for i in range(tokenizer.vocab_size)]
    opens_word = np.array([token[:1].isspace() for token in vocabulary])
    ends_line = np.array([token.endswith(b"\n") for token in vocabulary])
    first = np.concatenate([[True], ids[:-1] == tokenizer.eot_id])  # of a document
    after_line = np.concatenate([[False], ends_line[ids[:-1]]]) & ~opens_word[ids]
    ends = np.append(np.flatnonzero(ids == tokenizer.eot_id), len(ids))
    places = np.arange(len(ids))
    fits = ends[np.searchsorted(ends, places)] - places >= prompt_tokens + _SHORTEST
    starts = np.flatnonzero(first & fits)
    if len(starts) < count:
        starts = np.flatnonzero((first | after_line) & fits)
    if len(starts) < count:
        raise ValueError(
            f"the split has room for {len(starts):,} prompts of {prompt_tokens} tokens, not for "
            f"{count:,}: lower --prompts or --prompt-tokens, or give more text"
        )
    prompts = []
    for start in starts[np.linspace(0, len(starts) - 1, count).round().astype(int)]:
        cut = start + prompt_tokens
        boundaries = np.flatnonzero(opens_word[ids[start + 1 : cut + 1]])
        cut = start + 1 + int(boundaries[-1]) if len(boundaries) else cut
        bos = [tokenizer.eot_id] if first[start] else []
        end = ends[np.searchsorted(ends, cut)]  # <|endoftext|>, which is part of the text
        human = ids[cut : min(cut + max_tokens, end + 1)].tolist()
        prompts.append(Prompt(bos + ids[start:cut].tolist(), human))
    return prompts


def continue_prompts(
    run: Run,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    max_tokens: int,
    batch_size: int,
    seed: int,
    bar: Any,
) -> list[list[int]]:
    """Continue every prompt by at most `max_tokens` tokens, up to and with <|endoftext|>.

    Each prompt has its own generator, so that its text does not depend on `batch_size`.
    """
    device, end = next(run.model.parameters()).device, run.tokenizer.eot_id
    made: list[list[int]] = []
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        seeds = range(seed + start, seed + start + len(batch))
        own = continuations(
            run.model,
            [prompt.ids for prompt in batch],
            max_tokens,
            sampling=sampling,
            generator=[torch.Generator(device).manual_seed(i) for i in seeds],
            stop_id=end,
        )
        made += [ids if len(ids) == max_tokens else [*ids, end] for ids in own]
        bar.update(len(batch))
    return made


def assess(
    run: Run, prompts: Sequence[Prompt], ids: list[list[int]], *, batch_size: int
) -> Continuations:
    """Decode a continuation of each prompt and score it: its words, and its -log p."""
    requests = [
        Request(prompt.ids + own, first=len(prompt.ids))
        for prompt, own in zip(prompts, ids, strict=True)
    ]
    scores = score(run.model, requests, batch_size=batch_size)
    texts = [_decode(run.tokenizer, own) for own in ids]
    return Continuations(
        ids=ids,
        texts=texts,
        words=[words(text) for text in texts],
        nll=np.array([-s.total for s in scores]),
    )


@dataclass(frozen=True)
class Arguments:
    """Continue held-out prompts by every decoding strategy, and measure fluency and diversity."""

    run: Positional[str]
    """Run folder of `python train.py`; folder in Hugging Face's GPT-2 format; demo, the model that
    ships with this code; or a model of the Hugging Face hub, such as gpt2."""
    prompts: int = 100
    """How many prompts."""
    prompt_tokens: int = 32
    """Length of a prompt, cut back to whole words."""
    max_tokens: int | None = None
    """Longest continuation. None: 128, or what the context has left."""
    data: str | None = None
    """What train.py's --data takes. None: what the run was trained on."""
    token_type: TokenType | None = None
    """uint16 or uint32: the type of the ids in token files that do not say it."""
    split: str = "test"
    """Where the prompts come from: train, valid or test."""
    copy_tokens: int = 100_000_000
    """Look for copied words in so much of the training text, from its beginning; 0: not at all."""
    out: str | None = None
    """Folder to write to. None: `decoding` in the model's folder; for demo and models of the hub
    runs/NAME-decoding."""
    seed: int = 1337
    """Seed of the samples, the same for each strategy."""
    batch_size: int = 50
    """Prompts continued at once."""
    checkpoint: str = "best"
    """Of a run folder: best, last, or the number of a step."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    cache_dir: str = "data"
    """Where tokenised text is kept."""


def main(arguments: Arguments) -> None:
    run = open_model(arguments.run, checkpoint=arguments.checkpoint, device=arguments.device)
    max_tokens = _check(arguments, run.model.config.block_size)
    name = Path(run.name).name
    own = run.folder == Path(arguments.run)  # not `demo`, nor a model of the hub
    out = Path(arguments.out or (run.folder / "decoding" if own else f"runs/{name}-decoding"))
    prepared = prepare(
        **run.choose_data(arguments.data, arguments.token_type),
        tokenizer=str(run.folder),
        cache_dir=Path(arguments.cache_dir),
    )
    print("\n".join(prepared.notes))
    if arguments.split not in prepared.splits:
        have = ", ".join(prepared.splits)
        raise ValueError(f"{prepared.name} has no split {arguments.split!r}; it has {have}")
    prompts = choose_prompts(
        prepared.splits[arguments.split],
        run.tokenizer,
        count=arguments.prompts,
        prompt_tokens=arguments.prompt_tokens,
        max_tokens=max_tokens,
    )
    rows = _continue_by_all(run, prompts, max_tokens, arguments)
    texts = [row.words for row in rows.values()]
    copies, searched = None, 0
    if "train" in prepared.splits and arguments.copy_tokens:
        copies = CopySearch(itertools.chain(*texts), COPY_WORDS)
        searched = copies.read(prepared.splits["train"], run.tokenizer, arguments.copy_tokens)
    measures = measure(rows, eot_id=run.tokenizer.eot_id, copies=copies)
    findings = analyse(rows, measures)
    about = {
        "run": name,
        "step": run.step,
        "data": prepared.name,
        "split": arguments.split,
        "prompts": len(prompts),
        "prompt_tokens": arguments.prompt_tokens,
        "max_tokens": max_tokens,
        "seed": arguments.seed,
        "training_tokens_searched": searched,
        "ngrams_counted": {f"distinct_{n}": ngram_budget(texts, n) for n in (1, 2, 3)},
    }
    prompt_texts = [_decode(run.tokenizer, prompt.ids) for prompt in prompts]
    write_report(out, about, STRATEGIES, prompt_texts, rows, measures, findings)
    print(table(measures))
    print("\n".join(findings))
    print(f"\nwritten to {out}: decoding.md, decoding.json, decoding.png, decoding.svg")


def _check(arguments: Arguments, context: int) -> int:
    """Return the length of continuations; raise ValueError for settings that are impossible."""
    max_tokens = arguments.max_tokens
    if max_tokens is None:
        max_tokens = min(128, context - arguments.prompt_tokens)
    if max_tokens < 1 or arguments.prompt_tokens + max_tokens > context:
        raise ValueError(
            f"--prompt-tokens {arguments.prompt_tokens} and --max-tokens {max_tokens} must fit the "
            f"context of {context} tokens together, and leave room for one at least: every token "
            "of a continuation is scored with its whole prompt in the window"
        )
    return max_tokens


def _continue_by_all(
    run: Run, prompts: Sequence[Prompt], max_tokens: int, arguments: Arguments
) -> dict[str, Continuations]:
    """A row for the human text, then one for each strategy."""
    size, seed = arguments.batch_size, arguments.seed
    ids = {HUMAN: [prompt.human for prompt in prompts]}
    with progress_bar(True, total=len(STRATEGIES) * len(prompts), unit="text", leave=False) as bar:
        for name, sampling in STRATEGIES.items():
            bar.set_description(name)
            settings = {"max_tokens": max_tokens, "batch_size": size, "seed": seed}
            ids[name] = continue_prompts(run, prompts, sampling, **settings, bar=bar)
    return {name: assess(run, prompts, own, batch_size=size) for name, own in ids.items()}


def _decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    return tokenizer.decode(i for i in ids if i != tokenizer.eot_id)


if __name__ == "__main__":
    from gpt2.common.cli import run_tool

    run_tool(main, Arguments)
