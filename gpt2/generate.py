"""Text from a trained model: greedy decoding, temperature, top-k and nucleus sampling.

    python -m gpt2.generate runs/demo --prompt "Once upon a time" --strategy top-p --top-p 0.9

With logits z and temperature t the next token is drawn from p = softmax(z / t), cut down to
    greedy  the most probable token (t = 0)
    top-k   the k most probable (Fan et al. 2018, arXiv:1805.04833)
    top-p   the smallest set that holds probability p (nucleus; Holtzman et al. 2020,
            arXiv:1904.09751)
and renormalised.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from tyro.conf import Positional

from gpt2.model import GPT

Strategy = Literal["greedy", "sample", "top-k", "top-p"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen from its distribution. `temperature=0` is greedy."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature must be 0 (greedy) or more, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top-k must be at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top-p must be in (0, 1], got {self.top_p}")


def strategy(name: str, *, temperature: float, top_k: int, top_p: float) -> Sampling:
    """The sampling of a named strategy.

    Raises:
        ValueError: an unknown name, or a parameter out of range.
    """
    if name == "greedy":
        return Sampling(temperature=0)
    if name == "sample":
        return Sampling(temperature=temperature)
    if name == "top-k":
        return Sampling(temperature=temperature, top_k=top_k)
    if name == "top-p":
        return Sampling(temperature=temperature, top_p=top_p)
    raise ValueError(f"unknown strategy {name!r}: choose greedy, sample, top-k or top-p")


def next_token(
    logits: Tensor, sampling: Sampling, generator: torch.Generator | None = None
) -> Tensor:
    """Choose a token for each row: logits (B, V) -> ids (B,), int64."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.float() / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        kth = logits.topk(sampling.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    p = logits.softmax(dim=-1)
    if sampling.top_p is not None:
        ordered, order = p.sort(dim=-1, descending=True)
        # A token is out when those before it already hold top_p; the first is always in.
        before = ordered.cumsum(dim=-1) - ordered
        out = torch.zeros_like(p, dtype=torch.bool).scatter(1, order, before >= sampling.top_p)
        p = p.masked_fill(out, 0.0)
    return torch.multinomial(p, 1, generator=generator)[:, 0]


@torch.no_grad()
def stream_tokens(
    model: GPT,
    idx: Tensor,
    max_new_tokens: int,
    *,
    sampling: Sampling,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Yield the next token of each row, `max_new_tokens` times.

    Args:
        model: in evaluation mode.
        idx: prompts (B, T), int64, T >= 1.
        max_new_tokens: how many tokens to add.
        sampling: how each is chosen.
        generator: source of randomness; None takes PyTorch's own.

    Yields:
        ids (B,), int64. With learned positions the model sees the last `block_size` tokens.
    """
    if idx.shape[1] == 0:
        raise ValueError(
            "the prompt is empty: start from at least one token, such as <|endoftext|>"
        )
    for _ in range(max_new_tokens):
        if model.config.positions == "learned":
            idx = idx[:, -model.config.block_size :]
        token = next_token(model.next_logits(idx), sampling, generator)
        idx = torch.cat([idx, token[:, None]], dim=1)
        yield token


def generate(
    model: GPT,
    idx: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    stop_id: int | None = None,
) -> Tensor:
    """Continue the prompts: idx (B, T) -> (B, T + n), n <= max_new_tokens.

    It ends early when every row has produced `stop_id`; rows that ended first are filled up with
    it. See `stream_tokens` for the other arguments.
    """
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    columns = [idx]
    ended = torch.zeros(len(idx), dtype=torch.bool, device=idx.device)
    for token in stream_tokens(model, idx, max_new_tokens, sampling=sampling, generator=generator):
        if stop_id is not None:
            token = token.masked_fill(ended, stop_id)
            ended |= token == stop_id
        columns.append(token[:, None])
        if stop_id is not None and bool(ended.all()):
            break
    return torch.cat(columns, dim=1)


@dataclass(frozen=True)
class Arguments:
    """Continue a prompt with a trained model; the text appears as it is made."""

    run: Positional[str]
    """Run folder, as `python train.py` makes it."""
    prompt: str = ""
    """Text to continue. Empty: the beginning of a new document."""
    strategy: Strategy = "top-p"
    """greedy, sample (the whole distribution), top-k or top-p."""
    top_k: int = 50
    """For top-k: how many tokens to draw from."""
    top_p: float = 0.9
    """For top-p: the probability that the tokens to draw from hold together."""
    temperature: float = 1.0
    """Below 1 sharper, above 1 flatter; for all strategies but greedy."""
    max_tokens: int = 200
    """Tokens to make at most; the end of the document ends it earlier."""
    samples: int = 1
    """How many continuations."""
    seed: int = 1337
    """Seed of the samples."""
    checkpoint: str = "best"
    """best, last, or the number of a step."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""


def main(arguments: Arguments) -> None:
    from gpt2.run import load_run

    sampling = strategy(
        arguments.strategy,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
    )
    run = load_run(arguments.run, checkpoint=arguments.checkpoint, device=arguments.device)
    device = next(run.model.parameters()).device
    prompt = run.tokenizer.encode(arguments.prompt) or [run.tokenizer.eot_id]
    generator = torch.Generator(device).manual_seed(arguments.seed)
    for number in range(arguments.samples):
        if arguments.samples > 1:
            print(f"--- sample {number + 1} ---")
        print(arguments.prompt, end="", flush=True)
        ids = (
            int(token)
            for token in stream_tokens(
                run.model,
                torch.tensor([prompt], device=device),
                arguments.max_tokens,
                sampling=sampling,
                generator=generator,
            )
        )
        for text in run.tokenizer.decode_stream(_until(ids, run.tokenizer.eot_id)):
            sys.stdout.write(text)
            sys.stdout.flush()
        print()


def _until(ids: Iterator[int], stop_id: int) -> Iterator[int]:
    for i in ids:
        if i == stop_id:
            return
        yield i


if __name__ == "__main__":
    from gpt2.cli import run_tool

    run_tool(main, Arguments)
