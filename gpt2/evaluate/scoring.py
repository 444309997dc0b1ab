"""Log-probabilities of given tokens, for tasks, lm-eval and the comparison of strategies.

Of a sequence s_0 .. s_n a model gives log p(s_i | s_<i) for i = first .. n, each with as much
context as fits. The tokens to score are cut into stretches of at most the context length T. A
stretch a .. b-1 is computed from the T tokens before s_b-1, so that a shorter last one has tokens
from before its own beginning as context.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpt2.common.progress import progress_bar
from gpt2.model import GPT

_LOGITS = 1 << 25  # logits that exist at a time: 128 MiB of fp32


@dataclass(frozen=True)
class Request:
    """Tokens to score: `ids[first:]`, given those before. `first` is at least 1."""

    ids: Sequence[int]
    first: int

    def __post_init__(self) -> None:
        assert 1 <= self.first <= len(self.ids)


@dataclass(frozen=True)
class Scores:
    """The scored tokens of a request.

    Attributes:
        logprob: log p of each token given those before, in nats; (n,), float64.
        greedy: True for a token that is the most probable one in its place; (n,), bool.
    """

    logprob: NDArray[np.float64]
    greedy: NDArray[np.bool_]

    @property
    def total(self) -> float:
        return float(self.logprob.sum())


class _Stretch(NamedTuple):
    request: int
    inputs: Sequence[int]
    targets: Sequence[int]  # the tokens that follow the last len(targets) inputs
    offset: int  # of the first target among the request's scored tokens


@torch.no_grad()
def score(
    model: GPT, requests: Sequence[Request], *, batch_size: int, progress: bool = False
) -> list[Scores]:
    """Score requests in batches of similar length, in the precision of the model's weights.

    Args:
        model: in evaluation mode.
        batch_size: sequences per forward pass.

    Returns:
        One `Scores` for each request, in their order.
    """
    device = next(model.parameters()).device
    scores = [
        Scores(np.empty(len(r.ids) - r.first), np.empty(len(r.ids) - r.first, dtype=bool))
        for r in requests
    ]
    stretches = [s for i, r in enumerate(requests) for s in _cut(i, r, model.config.block_size)]
    stretches.sort(key=lambda s: -len(s.inputs))  # longest first: out of memory at once or never
    with progress_bar(progress, total=len(stretches), unit="seq", leave=False) as bar:
        for start in range(0, len(stretches), batch_size):
            batch = stretches[start : start + batch_size]
            logprob, greedy = _forward(model, batch, device)
            position = 0
            for s in batch:
                own, place = slice(position, position + len(s.targets)), s.offset
                scores[s.request].logprob[place : place + len(s.targets)] = logprob[own]
                scores[s.request].greedy[place : place + len(s.targets)] = greedy[own]
                position += len(s.targets)
            bar.update(len(batch))
    return scores


def _cut(number: int, request: Request, context: int) -> list[_Stretch]:
    ids, first = request.ids, request.first
    stretches = []
    for a in range(first, len(ids), context):
        b = min(a + context, len(ids))
        inputs = ids[max(0, b - 1 - context) : b - 1]
        stretches.append(_Stretch(number, inputs, ids[a:b], a - first))
    return stretches


def _forward(
    model: GPT, batch: Sequence[_Stretch], device: torch.device
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Log p of all targets of a batch, in order, and whether each is the most probable token."""
    # Padded at the end, where no earlier position can see it.
    x = torch.zeros(len(batch), max(len(s.inputs) for s in batch), dtype=torch.long)
    wanted = torch.zeros_like(x, dtype=torch.bool)
    for row, s in enumerate(batch):
        x[row, : len(s.inputs)] = torch.tensor(s.inputs)
        wanted[row, len(s.inputs) - len(s.targets) : len(s.inputs)] = True
    targets = torch.tensor([t for s in batch for t in s.targets], device=device)
    hidden = model.hidden(x.to(device))[wanted.to(device)]  # (targets, C)
    logprobs: list[Tensor] = []
    greedy: list[Tensor] = []
    rows = max(1, _LOGITS // model.config.vocab_size)
    for h, t in zip(hidden.split(rows), targets.split(rows), strict=True):
        logits = model.logits(h).float()
        chosen = logits.gather(1, t[:, None])[:, 0]
        logprobs.append(chosen - logits.logsumexp(dim=1))
        greedy.append(logits.argmax(dim=1) == t)
    return torch.cat(logprobs).cpu().double().numpy(), torch.cat(greedy).cpu().numpy()
