"""The next token of a text, with the key-value cache and without it, on random weights.

    pytest bench/bench_generate.py --benchmark-only

A call gives the logits of the next token of each row: with the cache from the newest token and the
keys and values of those before it, without from all tokens of the context. Drawing a token from
them is left out, and the same for both. Contexts longer than the preset's are given to the preset's
shape with more positions. `tokens_per_s` is the batch over the median, by the host's clock: on a
GPU most of so small a step is launching it.

Before it is timed, its logits are held to the error budget of `kernels.testing`: the exact logits
are those of a float64 model that reads the whole context, the plain ones those of masked matrix
products without a cache.
"""

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from bench.harness.clocks import Work
from bench.harness.measure import Case, Measure, Setting, Variant, error_share
from gpt2.cache import KVCache
from gpt2.config import PRESETS
from gpt2.model import GPT
from kernels.testing import judge

LEAST_POSITIONS = 1024


def cases(setting: Setting) -> list[Case]:
    if setting.smoke:
        return [_case(setting, "demo", context=16, batch=1)]
    preset, contexts = ("gpt2", (16, 64, 512, 1024)) if setting.on_gpu else ("demo", (16, 64, 512))
    return [_case(setting, preset, context=T, batch=B) for T in contexts for B in (1, 16)]


def bench_generate(case: Case, variant: str, measure: Measure) -> None:
    measure(case, variant)


class _Problem:
    """A model and a batch of texts (B, T), the same for all variants."""

    def __init__(self, setting: Setting, preset: str, context: int, batch: int) -> None:
        config = PRESETS[preset]
        self.config = replace(config, block_size=max(config.block_size, LEAST_POSITIONS))
        self.setting, self.context, self.batch = setting, context, batch

    @functools.cached_property
    def model(self) -> GPT:
        with self.setting.device:
            return GPT(self.config).to(self.setting.dtype).eval().requires_grad_(False)

    @functools.cached_property
    def idx(self) -> Tensor:
        shape = self.batch, self.context
        return torch.randint(self.config.vocab_size, shape, device=self.setting.device)

    @functools.cached_property
    def _expected(self) -> tuple[Tensor, Tensor]:
        """Plain and exact logits (B, V)."""
        plain = copy.deepcopy(self.model)
        plain.use(attn="naive")
        logits = plain.next_logits(self.idx)
        return logits, plain.double().next_logits(self.idx)

    def judge(self, work: Work) -> float:
        """The error of the logits as a share of its budget; WrongResult if it is above 1."""
        logits = cast(Tensor, work.run(*work.prepare()))
        return error_share(judge("the logits", logits, *self._expected))

    def variant(self, build: Callable[[], Work]) -> Variant:
        return Variant(build.__name__, build, ours=True, check=lambda: self.judge(build()))

    def cached(self) -> Work:
        """The newest token, with a cache that holds those before it."""
        cache = KVCache(self.config, self.batch)
        if self.context > 1:
            self.model.hidden(self.idx[:, :-1], cache)

        def forget() -> tuple[()]:
            cache.forget([length - (self.context - 1) for length in cache.lengths])
            return ()

        return Work(lambda: self.model.next_logits(self.idx[:, -1:], cache), forget)

    def uncached(self) -> Work:
        """All tokens."""
        return Work(lambda: self.model.next_logits(self.idx))


def _case(setting: Setting, preset: str, *, context: int, batch: int) -> Case:
    def variants() -> Sequence[Variant]:
        problem = _Problem(setting, preset, context, batch)
        return [problem.variant(problem.cached), problem.variant(problem.uncached)]

    return Case(
        "generate",
        {"model": preset, "context": context, "B": batch, "dtype": setting.dtype_name},
        variants,
        {"tokens_per_s": batch},
        clock="wall",
    )
