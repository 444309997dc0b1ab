"""The next token of a text, with the key-value cache and without it, on random weights.

    pytest bench/bench_generate.py --benchmark-only

A call gives the logits of the next token of each row: with the cache from the newest token and the
keys and values of those before it, without from all tokens of the context. Drawing a token from
them is left out, and the same for both. Contexts longer than the preset's are given to the preset's
shape with more positions. `tokens_per_s` is the batch over the median, by the host's clock: on a
GPU most of so small a step is launching it.

Before it is timed the logits are compared with a float64 model that reads the whole context. With M
the largest of its logits, u the unit roundoff of the dtype, and `plain` the logits by masked matrix
products, without a cache, in the dtype,

    max |logits - float64|  <=  2 * (max |plain - float64| + u * M)
"""

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from bench.harness.clocks import Work
from bench.harness.measure import Case, Setting, Variant, WrongResult
from gpt2.cache import KVCache
from gpt2.config import PRESETS
from gpt2.model import GPT

LEAST_POSITIONS = 1024


def cases(setting: Setting) -> list[Case]:
    if setting.smoke:
        return [_case(setting, "demo", context=16, batch=1)]
    preset, contexts = ("gpt2", (16, 64, 512, 1024)) if setting.on_gpu else ("demo", (16, 64, 512))
    return [
        _case(setting, preset, context=context, batch=batch)
        for context in contexts
        for batch in (1, 16)
    ]


def bench_generate(case: Case, measure: Callable[[Case], object]) -> None:
    measure(case)


class _Problem:
    """A model and a batch of texts (B, T), the same for all variants."""

    def __init__(self, setting: Setting, preset: str, context: int, batch: int) -> None:
        config = PRESETS[preset]
        config = replace(config, block_size=max(config.block_size, LEAST_POSITIONS))
        with setting.device:
            self.model = GPT(config).to(setting.dtype).eval().requires_grad_(False)
            self.idx = torch.randint(config.vocab_size, (batch, context))

    @functools.cached_property
    def _expected(self) -> tuple[Tensor, float]:
        """Exact logits (B, V), and how far from them one may be."""
        plain = copy.deepcopy(self.model)
        plain.use(attn="naive")
        logits = plain.next_logits(self.idx)
        exact = plain.double().next_logits(self.idx)
        error = float((logits.double() - exact).abs().max())
        roundoff = torch.finfo(logits.dtype).eps / 2
        return exact, 2 * (error + roundoff * float(exact.abs().max()))

    def judge(self, work: Work) -> float:
        """The error as a share of what is allowed; WrongResult if that is more than 1."""
        exact, allowed = self._expected
        logits = cast(Tensor, work.run(*work.prepare()))
        error = float((logits.double() - exact).abs().max())
        if not error <= allowed:
            raise WrongResult(f"the logits are off by {error:.2e}, allowed {allowed:.2e}")
        return error / allowed

    def variant(self, build: Callable[[], Work]) -> Variant:
        return Variant(build.__name__, build, ours=True, check=lambda: self.judge(build()))

    def cached(self) -> Work:
        """The last token, by way of a cache that holds those before it."""
        batch, context = self.idx.shape
        cache = KVCache(self.model.config, batch)
        if context > 1:
            self.model.hidden(self.idx[:, :-1], cache)

        def forget() -> tuple[()]:
            cache.forget([length - (context - 1) for length in cache.lengths])
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
