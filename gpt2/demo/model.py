"""Computes the content of the demo page: continuations, next tokens, and facts of the model."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile

import torch

from gpt2.common.ranges import check_number
from gpt2.generate.decoding import check_prompts, stream_tokens
from gpt2.generate.sampling import Sampling, distribution
from gpt2.model import count_parameters
from gpt2.runs.checkpoint import validation_loss
from gpt2.runs.result import read_result
from gpt2.runs.run import Run


@dataclass(frozen=True)
class Chance:
    """A token with its probability of coming next, in the model and under samplings by name."""

    token: str
    model: float
    under: dict[str, float]


def strategies(
    temperature: float = 1.0, top_k: float = 50, top_p: float = 0.9
) -> dict[str, Sampling]:
    """The strategies that the page compares, by the name above each column.

    Sliders give whole numbers as floats too, so `top_k` may be one.
    """
    return {
        "Greedy": Sampling(temperature=0),
        "Top-k": Sampling(temperature=temperature, top_k=int(top_k)),
        "Nucleus": Sampling(temperature=temperature, top_p=top_p),
    }


def side_by_side(
    run: Run, prompt: str, samplings: Mapping[str, Sampling], *, max_tokens: int, seed: int
) -> Iterator[dict[str, str]]:
    """Continue a prompt by all samplings at once.

    Args:
        run: the model.
        prompt: empty for the beginning of a new document.
        samplings: by name.
        max_tokens: of each continuation; the end of the document ends it earlier.
        seed: of each; `python -m gpt2.generate` with this seed writes the same text.

    Yields:
        The continuations so far by name, after each step of all that are unfinished.

    Raises:
        ValueError: the model cannot continue this prompt, or the seed is out of range.
    """
    check_number("seed", seed, "the seed")
    ids = _encode(run, prompt)
    streams = {
        name: _continuation(run, ids, sampling, max_tokens, seed)
        for name, sampling in samplings.items()
    }
    texts = dict.fromkeys(samplings, "")
    while streams:
        for name, stream in list(streams.items()):
            piece = next(stream, None)
            if piece is None:
                del streams[name]
            else:
                texts[name] += piece
        yield dict(texts)


def _continuation(
    run: Run, ids: list[int], sampling: Sampling, max_tokens: int, seed: int
) -> Iterator[str]:
    device = next(run.model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    tokens = stream_tokens(run.model, [ids], max_tokens, sampling=sampling, generator=generator)
    end = run.tokenizer.eot_id
    yield from run.tokenizer.decode_stream(takewhile(lambda i: i != end, map(int, tokens)))


@torch.no_grad()
def next_tokens(
    run: Run, prompt: str, samplings: Mapping[str, Sampling], count: int = 20
) -> list[Chance]:
    """The `count` most probable next tokens, the most probable first.

    An empty prompt is the beginning of a new document; temperatures must be above 0.

    Raises:
        ValueError: the model cannot continue this prompt.
    """
    device = next(run.model.parameters()).device
    logits = run.model.next_logits(torch.tensor([_encode(run, prompt)], device=device))
    under = {name: distribution(logits, s)[0].tolist() for name, s in samplings.items()}
    model = distribution(logits, Sampling())[0]
    top = model.topk(min(count, len(model)))
    return [
        Chance(_text(run, i), p, {name: q[i] for name, q in under.items()})
        for i, p in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]


def _text(run: Run, token: int) -> str:
    """The characters of a token; bytes that are only a part of one are shown as \\xe2."""
    return run.tokenizer.decode_bytes([token]).decode("utf-8", errors="backslashreplace")


def _encode(run: Run, prompt: str) -> list[int]:
    ids = run.tokenizer.encode_prompt(prompt)
    check_prompts(run.model, [ids])
    return ids


def facts(run: Run) -> dict[str, str]:
    """The facts of the model in the page's header, by name."""
    config, train = run.model.config, run.config
    found = {
        "parameters": f"{count_parameters(config):,}",
        "layers, heads, width": f"{config.n_layer}, {config.n_head}, {config.n_embd}",
        "context": f"{config.block_size:,} tokens",
        "vocabulary": f"{config.vocab_size:,} tokens",
    }
    if run.step is None:
        return found
    found["step"] = f"{run.step:,}"
    if train:
        tokens = run.step * train.sequences_per_step * train.seq_len
        found["trained on"] = f"{tokens:,} tokens"
    result = read_result(run)
    loss = validation_loss(run.folder / "checkpoints" / f"step-{run.step:06d}")
    if loss is None and result:
        loss = result.val_loss
    if loss is not None and loss < 700:  # the exponential of more is no float
        found["validation loss"] = f"{loss:.3f} (perplexity {math.exp(loss):.1f})"
    if result and (test := result.test):
        found["test"] = f"perplexity {test.perplexity:.1f}, {test.bits_per_byte:.3f} bits/byte"
    return found
