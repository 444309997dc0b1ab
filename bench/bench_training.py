"""The training step that train.py runs, on random tokens: tokens per second and peak memory.

    pytest bench/bench_training.py --benchmark-only

Four kinds of cases, from demo to gpt2-xl as the device allows:

    model, compile     attention backend x kernels, and peers (`bench.harness.peer_models`), eager
                       or all of them under torch.compile
    ladder             from a first implementation in fp32 to everything enabled: each rung adds
                       one optimisation to those before it that can run here
    largest_batch      the step with the largest batch that fits (GPU only), found by bisection

Before a step is timed its gradients are checked (`bench.harness.training_variants`).

    tokens_per_s          B T over the median time of a step (forward, backward, clipping, AdamW)
    tflops                model FLOPs per second, "exact" convention (`gpt2.training.estimate`)
    fraction_of_limit     of the matrix rate measured in this run
    mfu_exact, _nanogpt   model FLOPs over the data sheet's rate, by either convention
    peak_memory_bytes     peak of weights, optimizer and activations: by CUDA's allocator; on a CPU
                          by the resident memory of a process of its own
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from bench.harness.measure import Case, Measure, Setting, Variant
from bench.harness.peer_models import CHECKOUT, TRANSFORMERS, checkout_name
from bench.harness.peers import NO_COMPILE
from bench.harness.resident_memory import resident_memory
from bench.harness.results import Scalar
from bench.harness.training_steps import Problem, Recipe
from bench.harness.training_variants import largest_batch_variant, step_variants
from gpt2.config import PRESETS, VOCAB_MULTIPLE, Kernel, TrainConfig, settle
from gpt2.training.machine import choose_machine

# Sequences and their length by preset; on a GPU memory for several variants at once is needed.
GPU_SIZES = {
    "gpt2": (32, 1024),
    "gpt2-medium": (16, 1024),
    "gpt2-large": (8, 1024),
    "gpt2-xl": (4, 1024),
    "mini": (64, 256),
    "demo": (256, 128),
}
CPU_SIZES = {"demo": (16, 128), "mini": (8, 256), "gpt2": (2, 256)}
SHORT = (256, 128)  # GPT-2 small on short sequences


def cases(setting: Setting) -> list[Case]:
    if setting.smoke:
        demo = problem_for(setting, "demo", 2, 64)
        recipes = [_ours(setting, attn, "torch") for attn in ("naive", "sdpa")]
        recipes += [_ours(setting, "triton", "triton"), *_peers(CHECKOUT, TRANSFORMERS)]
        return [_steps(demo, recipes), _ladder(demo, setting)]
    if not setting.on_gpu:
        return _cpu_cases(setting)
    return _gpu_cases(setting)


def bench_training(case: Case, variant: str, measure: Measure) -> None:
    measure(case, variant)


def problem_for(
    setting: Setting, preset: str, B: int, T: int, dtype: torch.dtype | None = None
) -> Problem:
    """A problem in `dtype`, by default in the one that train.py would choose."""
    if dtype is None:
        config = settle(TrainConfig(compile=False, attn="sdpa"), preset)
        dtype = choose_machine(setting.device, config, PRESETS[preset])[0].dtype
    return Problem(preset, PRESETS[preset], B, T, setting.device, dtype)


def _ours(setting: Setting, attn: str, kernels: Kernel) -> Recipe:
    """Our model with the options `--attn` and `--kernels`."""
    return Recipe(
        f"attn {attn}, kernels {kernels}", attn, kernels, kernels, kernels,
        skip=setting.no_triton if "triton" in (attn, kernels) else None,
    )  # fmt: skip


def _peers(*names: str) -> list[Recipe]:
    return [Recipe(name if name == TRANSFORMERS else checkout_name(), peer=name) for name in names]


def _all(setting: Setting) -> list[Recipe]:
    pairs: list[tuple[str, Kernel]] = [
        ("triton", "triton"), ("sdpa", "triton"), ("triton", "torch"), ("sdpa", "torch"),
        ("flash", "torch"), ("naive", "torch"),
    ]  # fmt: skip
    return [_ours(setting, *pair) for pair in pairs] + _peers(CHECKOUT, TRANSFORMERS)


def _main(setting: Setting) -> list[Recipe]:
    """All kernels ours, all kernels PyTorch's, and nanoGPT."""
    both = [_ours(setting, "triton", "triton"), _ours(setting, "sdpa", "torch")]
    return both + _peers(CHECKOUT)


def _gpu_cases(setting: Setting) -> list[Case]:
    brief = setting.profile == "gpu"
    every, main = _all(setting), _main(setting)
    found = []
    for preset, (B, T) in GPU_SIZES.items():
        if brief and preset in ("mini", "demo"):
            continue
        problem = problem_for(setting, preset, B, T)
        headline = preset == "gpt2"
        found += [
            _steps(problem, every if headline or not brief else main, priority=int(not headline)),
            _steps(problem, main, compile=True, priority=0 if headline else 3),
        ]
    small = problem_for(setting, "gpt2", *GPU_SIZES["gpt2"])
    short = problem_for(setting, "gpt2", *SHORT)
    return [
        *found,
        _ladder(replace(small, B=small.B // 2), setting),
        _steps(short, main, priority=1),
        _steps(short, main, compile=True, priority=2),
        *(_largest_batch(small, recipe) for recipe in main),
    ]


def _cpu_cases(setting: Setting) -> list[Case]:
    found = []
    for preset, (B, T) in CPU_SIZES.items():
        problem = problem_for(setting, preset, B, T)
        found.append(_steps(problem, _all(setting), memory=True))
        if preset != "gpt2":
            recipes = [_ours(setting, attn, "torch") for attn in ("naive", "sdpa")]
            found.append(_steps(problem, recipes + _peers(CHECKOUT), compile=True))
        if preset == "mini" and problem.dtype != torch.float32:
            in_fp32 = replace(problem, dtype=torch.float32)
            found.append(_steps(in_fp32, _all(setting), memory=True))
    mini = problem_for(setting, "mini", *CPU_SIZES["mini"])
    return [*found, _ladder(mini, setting)]


def _steps(
    problem: Problem,
    recipes: Sequence[Recipe],
    *,
    compile: bool = False,
    memory: bool = False,
    priority: int = 1,
) -> Case:
    recipes = [replace(recipe, compile=compile) for recipe in recipes]
    what = {"B": problem.B, "compile": compile}
    memory_of = resident_memory if memory else None
    return _case(
        problem, lambda: step_variants(problem, recipes, memory_of=memory_of), what, priority
    )


def _ladder(problem: Problem, setting: Setting) -> Case:
    what = {"B": problem.B, "ladder": True}
    return _case(problem, lambda: step_variants(problem, ladder(problem, setting)), what, 0)


def ladder(problem: Problem, setting: Setting) -> list[Recipe]:
    """Recipes from a first implementation to everything enabled, one change at a time.

    A rung that cannot run here is skipped, and its change left out of the rungs above it.
    """
    base = Recipe("naive, fp32", attn="naive", head="whole", fp32=True)
    triton = setting.no_triton
    rungs: list[tuple[str, dict[str, object], str | None]] = []
    if problem.dtype != torch.float32:
        name = str(problem.dtype).removeprefix("torch.")
        rungs.append((f"+ {name} autocast", {"fp32": False}, None))
    if problem.config.vocab_size % VOCAB_MULTIPLE:
        rungs.append(("+ padded vocabulary", {"head": "padded"}, None))
    fused: dict[str, object] = {"norm_kernel": "triton", "mlp_kernel": "triton", "head": "triton"}
    rungs += [
        ("+ SDPA", {"attn": "sdpa"}, None),
        ("+ loss in chunks", {"head": "torch"}, None),
        ("+ fused kernels", fused, triton),
        ("+ Triton attention", {"attn": "triton"}, triton),
        ("+ torch.compile", {"compile": True}, NO_COMPILE if setting.smoke else None),
    ]
    found = [base]
    for name, change, skip in rungs:
        rung = replace(base, name=name, skip=skip, **change)  # type: ignore[arg-type]
        found.append(rung)
        if skip is None:
            base = rung
    return found


def _largest_batch(problem: Problem, recipe: Recipe) -> Case:
    what = {"compile": False, "largest_batch": True}
    return _case(problem, lambda: [largest_batch_variant(problem, recipe)], what, 2)


def _case(
    problem: Problem,
    variants: Callable[[], list[Variant]],
    what: Mapping[str, Scalar],
    priority: int,
) -> Case:
    dtype = str(problem.dtype).removeprefix("torch.")
    amounts: dict[str, float] = {}
    if "B" in what:  # else the batch, and the amounts with it, are found when it is measured
        amounts["tokens_per_s"] = problem.tokens
        # The limit is that of bf16 products on a GPU and of fp32 ones on a CPU.
        if problem.device.type == "cuda" or problem.dtype == torch.float32:
            amounts["tflops"] = problem.tflops
    case = {"model": problem.name, "T": problem.T, "dtype": dtype, **what}
    return Case("training", case, variants, amounts, clock="wall", priority=priority)
