"""Choose the next token from the logits z.

In this order:

    penalty      z_i / r for tokens that occurred before if z_i > 0, else z_i r: seen tokens lose
                 (Keskar et al. 2019, arXiv:1909.05858)
    greedy       the most probable token: temperature 0, and the end; otherwise
    temperature  p = softmax(z / t)
    top-k        the k most probable tokens (Fan et al. 2018, arXiv:1805.04833)
    top-p        the fewest tokens that hold probability p together (nucleus; Holtzman et al. 2020,
                 arXiv:1904.09751)
    min-p        the tokens of at least m times the largest probability (Nguyen et al. 2024,
                 arXiv:2407.01082)

each cut renormalised before the next, and a token is drawn from what is left.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpt2.common.ranges import check_numbers

Generators = torch.Generator | Sequence[torch.Generator] | None


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The rules for the next token; temperature 0 is greedy, None and a penalty of 1 do nothing."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        check_numbers(self)


def strategy(
    name: str,
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float = 0.1,
    repetition_penalty: float = 1.0,
) -> Sampling:
    """Build the sampling of a named strategy.

    Raises:
        ValueError: an unknown name, or a parameter of the strategy out of range.
    """
    if name == "greedy":
        return Sampling(temperature=0, repetition_penalty=repetition_penalty)
    cuts: dict[str, dict[str, Any]] = {
        "sample": {},
        "top-k": {"top_k": top_k},
        "top-p": {"top_p": top_p},
        "min-p": {"min_p": min_p},
    }
    if name not in cuts:
        raise ValueError(f"unknown strategy {name!r}: choose greedy, {', '.join(cuts)}")
    return Sampling(temperature=temperature, repetition_penalty=repetition_penalty, **cuts[name])


def distribution(logits: Tensor, sampling: Sampling, seen: Tensor | None = None) -> Tensor:
    """Compute the probabilities that the next token is drawn with.

    Args:
        logits: (B, V), any floating point dtype.
        sampling: with a temperature above 0.
        seen: (B, V), bool, True for tokens that occurred before; for a repetition penalty.

    Returns:
        (B, V), float32; rows sum to 1.
    """
    logits = _penalised(logits, sampling, seen)
    # From the largest down, so that no temperature makes infinities of both signs.
    below = logits - logits.amax(dim=-1, keepdim=True)
    logits = below / max(sampling.temperature, torch.finfo(torch.float32).tiny)
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        values, kept = logits.topk(sampling.top_k)
        logits = torch.full_like(logits, -torch.inf).scatter(1, kept, values)
    p = logits.softmax(dim=-1)
    if sampling.top_p is not None and sampling.top_p < 1:  # 1, and rounding would cut the tail
        ordered, order = p.sort(dim=-1, descending=True, stable=True)
        # In float64 the sums of equal tokens are exact. Apple's GPU has none.
        exact = ordered.to("cpu" if p.device.type == "mps" else p.device).double()
        sums = exact.cumsum(dim=-1)
        # A token is out when those before it already hold top_p; the first is always in.
        out = ((sums - exact) / sums[:, -1:] >= sampling.top_p).to(p.device)
        p = p.masked_fill(torch.zeros_like(out).scatter(1, order, out), 0.0)
    if sampling.min_p is not None:
        p = p.masked_fill(p < sampling.min_p * p.amax(dim=-1, keepdim=True), 0.0)
    return p / p.sum(dim=-1, keepdim=True)


def next_token(
    logits: Tensor, sampling: Sampling, generator: Generators = None, seen: Tensor | None = None
) -> Tensor:
    """Choose a token for each row: logits (B, V) -> ids (B,), int64.

    Args:
        logits, sampling, seen: as in `distribution`; temperature 0 takes the most probable token.
        generator: source of randomness on the device of the logits; None takes PyTorch's own. With
            one for each row, what a row draws does not depend on the rows beside it.
    """
    if sampling.temperature == 0:
        return _penalised(logits, sampling, seen).argmax(dim=-1)
    p = distribution(logits, sampling, seen)
    if generator is None or isinstance(generator, torch.Generator):
        return torch.multinomial(p, 1, generator=generator)[:, 0]
    draws = [
        torch.multinomial(row, 1, generator=own) for row, own in zip(p, generator, strict=True)
    ]
    return torch.cat(draws)


def _penalised(logits: Tensor, sampling: Sampling, seen: Tensor | None) -> Tensor:
    logits = logits.float()
    if not logits.amax(dim=-1).isfinite().all():  # -inf for some tokens is no harm
        raise ValueError(
            "the model's logits are infinite or NaN, so there is no next token: take an earlier "
            "--checkpoint of the run"
        )
    penalty = sampling.repetition_penalty
    if penalty == 1:
        return logits
    assert seen is not None
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
