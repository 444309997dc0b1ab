"""The next token of a text, with the key-value cache and without it, on random weights.

    pytest bench/bench_generate.py --benchmark-only

A call gives the logits of the next token of each row: with the cache from the newest token and the
keys and values of those before it, and so for some tokens in a row, as in decoding; without from
all tokens of the context. Drawing a token from them is left out, and the same for both. Contexts
longer than the preset's are given to the preset's shape with more positions. `tokens_per_s` is the
batch over the median, by the host's clock: on a GPU most of so small a step is launching it. On a
CPU one text is also continued by GPT-2 small, in fp32 and bf16, and by llama.cpp with the same
weights.

Before it is timed, its logits are held to the error budget of `kernels.testing`: the exact logits
are those of a float64 model that reads the whole context, the plain ones those of masked matrix
products without a cache.
"""

import copy
import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from bench.harness.clocks import Work
from bench.harness.llama_cpp_model import LlamaCpp
from bench.harness.measure import Case, Measure, Setting, Variant, error_share
from bench.harness.peers import missing
from gpt2.cache import KVCache
from gpt2.config import PRESETS
from gpt2.model import GPT
from kernels.testing import judge

LEAST_POSITIONS = 1024
# The first token alone would be timed with the caches, and beside the threads that still wait for
# work, of the variant before it.
IN_A_ROW = 16


def cases(setting: Setting) -> list[Case]:
    if setting.smoke:
        return [_case(setting, "demo", context=16, batch=1)]
    if setting.on_gpu:
        contexts = 16, 64, 512, 1024
        return [_case(setting, "gpt2", context=T, batch=B) for T in contexts for B in (1, 16)]
    both = itertools.product((torch.float32, torch.bfloat16), (64, 512))
    return [
        *(_case(setting, "demo", context=T, batch=B) for T in (16, 64, 512) for B in (1, 16)),
        *(_case(setting, "gpt2", context=T, batch=1, dtype=dtype) for dtype, T in both),
    ]


def bench_generate(case: Case, variant: str, measure: Measure) -> None:
    measure(case, variant)


class _Problem:
    """A model and a batch of texts (B, T), the same for all variants."""

    def __init__(
        self, setting: Setting, preset: str, context: int, batch: int, dtype: torch.dtype
    ) -> None:
        config = PRESETS[preset]
        self.config = replace(config, block_size=max(config.block_size, LEAST_POSITIONS))
        self.setting, self.context, self.batch, self.dtype = setting, context, batch, dtype

    @functools.cached_property
    def model(self) -> GPT:
        with self.setting.device:
            return GPT(self.config).to(self.dtype).eval().requires_grad_(False)

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

    def judge(self, work: Work, *, peer: bool = False) -> float:
        """The error of the logits as a share of its budget; WrongResult if it is above 1.

        llama.cpp may also lose a rounding of fp16, in which it has GELU as a table.
        """
        logits = cast(Tensor, work.run(*work.prepare()))
        found = judge("the logits", logits, *self._expected)
        rounding = torch.finfo(torch.float16).eps * found.size
        return error_share(found, max(found.allowed, rounding) if peer else None)

    def variant(self, build: Callable[[], Work], calls: int = IN_A_ROW) -> Variant:
        return Variant(
            build.__name__, build, ours=True, check=lambda: self.judge(build()), calls=calls
        )

    def peer(self) -> Variant:
        if skip := missing("llama_cpp", "llama-cpp"):
            return Variant("llama.cpp", self.llama_cpp, skip=skip)
        return Variant(
            "llama.cpp",
            self.llama_cpp,
            check=lambda: self.judge(self.llama_cpp(), peer=True),
            calls=IN_A_ROW,
        )

    def cached(self, model: GPT | None = None) -> Work:
        """The newest token, with a cache that holds those before it."""
        cache, model = KVCache(self.config, self.batch), model or self.model
        if self.context > 1:
            model.hidden(self.idx[:, :-1], cache)

        def forget() -> tuple[()]:
            cache.forget([length - (self.context - 1) for length in cache.lengths])
            return ()

        return Work(lambda: model.next_logits(self.idx[:, -1:], cache), forget)

    def compiled(self) -> Work:
        """The same, compiled."""
        return self.cached(_compiled(self.model))

    def uncached(self) -> Work:
        """All tokens."""
        return Work(lambda: self.model.next_logits(self.idx))

    def llama_cpp(self) -> Work:
        """The newest token, by llama.cpp."""
        peer, before = LlamaCpp(self.model), self.context - 1
        peer.read(self.idx[:, :-1])

        def forget() -> tuple[()]:
            peer.forget_after(before)
            return ()

        return Work(lambda: peer.read(self.idx[:, -1:]), forget)


def _compiled(model: GPT) -> GPT:
    model = copy.copy(model)  # with the same weights
    model.compile_next_token()
    return model


def _case(
    setting: Setting, preset: str, *, context: int, batch: int, dtype: torch.dtype | None = None
) -> Case:
    dtype = dtype or setting.dtype

    def variants() -> Sequence[Variant]:
        problem = _Problem(setting, preset, context, batch, dtype)
        ours = [problem.variant(problem.cached), problem.variant(problem.uncached, calls=1)]
        if (preset, setting.on_gpu) == ("gpt2", False):
            return [ours[0], problem.variant(problem.compiled), ours[1], problem.peer()]
        return ours

    name = str(dtype).removeprefix("torch.")
    return Case(
        "generate",
        {"model": preset, "context": context, "B": batch, "dtype": name},
        variants,
        {"tokens_per_s": batch},
        clock="wall",
    )
