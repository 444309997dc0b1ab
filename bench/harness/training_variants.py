"""Training steps as variants of a case: checked, then timed; and the largest batch that fits.

Before a step of ours is timed, the gradient of each parameter is compared with that of the plain
model of the same weights in more precision (float32 for 16-bit types, else float64), within the
error budget of `kernels.testing`.

Peers have weights of their own: their loss on random tokens must be that of a guess, ln V.
"""

import functools
import gc
import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from bench.harness.clocks import Work
from bench.harness.measure import Unavailable, Variant, WrongResult, error_share
from bench.harness.training_steps import Problem, Recipe, Step, Training, build_model
from gpt2.common.devices import peak_flops
from gpt2.training.estimate import flops_per_token, flops_per_token_nanogpt
from kernels.testing import judge

GUESS_TOLERANCE = 0.5  # nats between a peer's first loss and ln V
MOST_SEQUENCES = 4096


class Referee:
    """Compares the gradients of steps with those of the plain model."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    @functools.cached_property
    def _expected(self) -> tuple[list[Tensor], list[Tensor]]:
        """Gradients of the plain model in the compute type, and in more precision."""
        step = Step(self.problem, Recipe("plain"))
        _, plain = step.gradients()
        exact_type = torch.float64 if self.problem.dtype == torch.float32 else torch.float32
        step.training.model.to(exact_type)
        step.recipe = Recipe("exact", fp32=True)
        _, exact = step.gradients()
        return plain, exact

    def judge(self, step: Step) -> float:
        """The largest error of a gradient as a share of its budget.

        Raises:
            WrongResult: the share is above 1, or not a number.
        """
        loss, gradients = step.gradients()
        if step.recipe.peer is not None:
            guess = math.log(self.problem.config.vocab_size)
            if not abs(loss - guess) < GUESS_TOLERANCE:
                raise WrongResult(f"the first loss is {loss:.3f}, and a guess {guess:.3f}")
            return abs(loss - guess) / GUESS_TOLERANCE
        names = [f"the gradient of {name}" for name, _ in step.training.model.named_parameters()]
        return max(
            error_share(judge(name, found, plain, exact))
            for name, found, plain, exact in zip(names, gradients, *self._expected, strict=True)
        )


def step_variants(
    problem: Problem,
    recipes: list[Recipe],
    *,
    memory_of: Callable[[Problem, Recipe], int | None] | None = None,
) -> list[Variant]:
    """The recipes as variants of one case; eager ones of ours share weights, to save memory.

    `memory_of` measures the peak memory in bytes on a CPU, whose allocator keeps no statistics.
    """
    shared = functools.cache(lambda: Training(build_model(problem)))
    referee = Referee(problem)

    def variant(recipe: Recipe) -> Variant:
        peak: dict[str, float] = {}

        @functools.cache
        def step() -> Step:
            own = recipe.compile or recipe.peer
            return Step(problem, recipe, None if own else shared())

        def build() -> Work:
            if problem.device.type == "cuda":
                peak["peak_memory_bytes"] = step().peak_memory()
            elif memory_of is not None:
                found = memory_of(problem, recipe)
                peak.update({} if found is None else {"peak_memory_bytes": found})
            return Work(step().run, step().choose)

        return Variant(
            recipe.name,
            build,
            ours=recipe.peer is None,
            skip=recipe.unavailable(problem),
            check=None if recipe.unavailable(problem) else lambda: referee.judge(step()),
            metrics=lambda seconds: {**utilisation(problem, seconds), **peak},
        )

    return [variant(recipe) for recipe in recipes]


def utilisation(problem: Problem, seconds: float) -> dict[str, float]:
    """Model FLOPs utilisation ("mfu_...") by both conventions; {} for a device without a rate."""
    peak = peak_flops(problem.device)
    if peak is None:
        return {}
    rate = problem.tokens / seconds / peak
    return {
        "mfu_exact": rate * flops_per_token(problem.config, problem.T),
        "mfu_nanogpt": rate * flops_per_token_nanogpt(problem.config, problem.T),
    }


def largest_batch_variant(problem: Problem, recipe: Recipe) -> Variant:
    """The step with the largest batch that fits on the GPU; `problem.B` is ignored."""
    found: dict[str, float] = {}

    def build() -> Work:
        B = largest(lambda B: _fits(replace(problem, B=B), recipe))
        if B == 0:
            raise Unavailable("out of memory with a single sequence")
        step = Step(replace(problem, B=B), recipe)
        found["largest_batch"] = B
        found["peak_memory_bytes"] = step.peak_memory()
        return Work(step.run)

    def metrics(seconds: float) -> dict[str, float]:
        done = replace(problem, B=int(found["largest_batch"]))
        rates = {"tokens_per_s": done.tokens / seconds, "tflops": done.tflops / seconds}
        return {**utilisation(done, seconds), **found, **rates}

    skip, one = recipe.unavailable(problem), replace(problem, B=1)
    return Variant(
        recipe.name,
        build,
        ours=recipe.peer is None,
        skip=skip,
        check=None if skip else lambda: Referee(one).judge(Step(one, recipe)),
        metrics=metrics,
    )


def largest(fits: Callable[[int], bool], most: int = MOST_SEQUENCES) -> int:
    """The largest number up to `most` that fits, within a sixteenth of it; 0 if 1 does not.

    If a number fits, so do all smaller ones.
    """
    good, bad = 0, 1
    while bad <= most and fits(bad):
        good, bad = bad, 2 * bad
    bad = min(bad, most + 1)
    while bad - good > max(1, good // 16):
        middle = (good + bad) // 2
        if fits(middle):
            good = middle
        else:
            bad = middle
    return good


def _fits(problem: Problem, recipe: Recipe) -> bool:
    try:
        step = Step(problem, recipe)
        step.run()
        step.run()  # the first makes the optimizer's states
        return True
    except RuntimeError as error:  # also that of a library which finds no memory
        if isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error):
            return False
        raise
    finally:
        step = None  # type: ignore[assignment]
        gc.collect()
        if problem.device.type == "cuda":
            torch.cuda.empty_cache()
