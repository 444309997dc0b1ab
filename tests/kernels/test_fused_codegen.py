"""The code that the fused kernels compile to on every GPU family, examined without a GPU."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import triton

import kernels.gelu
import kernels.swiglu
from kernels._norm import operators as norm
from kernels.cross_entropy import LOADS, launch_cross_entropy
from tests.kernels.codegen import SHARED_LIMIT, TENSOR_CORE, Code, compile_for

TARGETS = list(SHARED_LIMIT)


# ---- in the compiling process


def norms(width, added, centred, stream="bfloat16", rows=640):
    x = torch.empty(rows, width, dtype=torch.bfloat16)
    residual = torch.empty(rows, width, dtype=getattr(torch, stream)) if added else None
    weight = torch.empty(width)
    norm.norm_fwd(x, residual, weight, weight if centred else None, 1e-5, centred, x.dtype)
    stats = torch.empty(1 + centred, rows)
    saved = x if residual is None else residual
    norm.norm_bwd(x, residual, saved, weight, stats, centred, x.dtype, True, centred)


def activations(width: int, swiglu_width: int, as_in_model: bool = True, rows: int = 640) -> None:
    """GELU with its bias and SwiGLU of two tensors, as in the model; or without and packed."""
    x, bias = torch.empty(rows, width, dtype=torch.bfloat16), torch.empty(width)
    both = torch.empty(rows, 2 * swiglu_width, dtype=torch.bfloat16)
    gate = both[:, :swiglu_width].contiguous()
    if as_in_model:
        kernels.gelu._fwd(x, bias)
        kernels.gelu._bwd(x, x, bias, True)
        kernels.swiglu._fwd(gate, gate)
        kernels.swiglu._bwd(gate, gate, gate)
    else:
        kernels.gelu._fwd(x, None)
        kernels.gelu._bwd(x, x, None, False)
        kernels.swiglu._packed_fwd(both)
        kernels.swiglu._packed_bwd(gate, both)


def loss(width, vocab_size, dtype="bfloat16", need_grad=True, label_smoothing=0.0, rows=64):
    logits = torch.empty(rows, width, dtype=getattr(torch, dtype))
    targets, losses = torch.zeros(rows, dtype=torch.int64), torch.empty(rows)
    launch_cross_entropy(
        logits, targets, None, torch.ones(()), losses, logits if need_grad else None,
        vocab_size, -100, label_smoothing, 0.0, True,
    )  # fmt: skip


# ---- in the test


WIDTHS = [768, 1024, 1280, 1600]
NORMS = [  # width, with the residual addition, LayerNorm, dtype of the residual stream
    *((width, True, True) for width in WIDTHS),
    (768, True, False),
    (768, False, False),
    (768, False, True),
    (768, True, True, "float32"),
    (1600, True, True, "float32"),
]
ACTIVATIONS = [(3072, 2048), (3072, 2048, False), (6400, 4288), (6400, 4288, False)]
LOSSES = [(50304, 50257), (50304, 50257, "float32"), (50304, 50257, "bfloat16", True, 0.1)]
CALLS: dict[Any, Sequence[Any]] = {norms: NORMS, activations: ACTIVATIONS, loss: LOSSES}
# The first of each where the machine code differs: that of sm_89 is that of sm_86, in every figure.
# Slow: all on one target, and all norms, which fill the registers, where tensor cores are.
CASES = [
    pytest.param(
        target, call, args,
        marks=[] if args == every[0] and target != "sm_89" else pytest.mark.slow,
    )
    for target in TARGETS
    for call, every in CALLS.items()
    for args in (every if target in (TENSOR_CORE if call is norms else ["sm_90"]) else every[:1])
]  # fmt: skip


def check_norms(forward: Code, backward: Code, sums: Code) -> None:
    """All of 768 is read and written at 16 bytes per lane."""
    fwd = norm.plan_rows(768, 2, norm.FWD_VALUES, norm.FWD_THREADS)
    bwd = norm.plan_rows(768, 2, norm.BWD_VALUES, norm.BWD_THREADS)
    accesses = 768 * fwd.rows // fwd.threads // 8  # of one tensor
    assert (forward.wide_loads, forward.wide_stores) == (2 * accesses, 2 * accesses), forward
    accesses = 768 * bwd.rows // bwd.threads // 8
    assert backward.wide_loads >= 3 * accesses, backward
    assert backward.wide_stores >= accesses, backward


def check_activations(*compiled: Code) -> None:
    as_in_model = len(compiled) > 4
    for c in compiled:
        if c.kernel != "sum_partials_kernel":
            assert c.narrow_loads == 0, c
            assert c.wide_stores > 0, c
        if c.target == "sm_90" and "gelu" in c.kernel:
            (walk,) = c.loops
            bias = 2 * as_in_model
            most = (24 if "bwd" in c.kernel else 12) + bias  # instructions per element
            assert walk.instructions <= most * 8 * walk.wide_stores, c
        if c.target == "sm_90" and "swiglu" in c.kernel:
            halves = 0 if as_in_model else 1  # of one tensor have other addresses
            most = (25 if "bwd" in c.kernel else 17) + halves
            assert c.instructions <= most * kernels.swiglu.VALUES, c


def check_loss(c: Code) -> None:
    """Whole blocks and the tail, in both passes; else only a row's target, its logit, the count."""
    assert c.wide_loads >= 2 * (LOADS + 1), c
    assert c.narrow_loads <= 3, c
    assert c.wide_stores >= LOADS + 1, c
    if c.target == "sm_90":
        passes = sorted(loop.instructions for loop in c.loops)[-2:]
        most = 15 if triton.__version__ >= "3.7" else 16  # instructions per element
        assert sum(passes) <= most * 8 * LOADS, c


# What the first case of each is held to besides, and activations of that width that stand alone.
CHECKS: dict[Any, Any] = {norms: check_norms, activations: check_activations, loss: check_loss}
# Instructions per element, and barriers, of the walk of a norm's backward on sm_90.
WALKS = {NORMS[0]: (21, 2), NORMS[1]: (20, 2), NORMS[3]: (24, 4), NORMS[6]: (19, 2)}
# Programs that a multiprocessor holds of the last kernel with a walk, to hide the latency of loads.
PROGRAMS = {NORMS[0]: 3, NORMS[3]: 2, LOSSES[0]: 2, LOSSES[2]: 2}


@pytest.mark.parametrize(("target", "call", "args"), CASES)
def test_nothing_spills_and_memory_is_moved_in_16_bytes_by_several_programs(target, call, args):
    compiled = compile_for(target, call, *args)
    for c in compiled:
        assert c.spills == 0, c
        assert c.shared <= SHARED_LIMIT[target], c
    if args in (CALLS[call][0], ACTIVATIONS[1]):
        CHECKS[call](*compiled)
    if target != "gfx942":
        walking = compiled[1 if call is norms else 0]
        least = PROGRAMS.get(args, 1)
        if (target, args) == ("sm_120", NORMS[0]) and triton.__version__.startswith("3.8."):
            least = 2  # more registers there than by the Tritons before and after
        assert walking.programs_per_sm >= least, walking
    if target == "sm_90" and args in WALKS:
        plan = norm.plan_rows(args[0], 2, norm.BWD_VALUES, norm.BWD_THREADS)
        elements = plan.rows * args[0] / plan.threads
        instructions, barriers = WALKS[args]
        assert walking.loops[0].instructions <= instructions * elements, walking
        assert walking.loops[0].barriers <= barriers, walking


@pytest.mark.parametrize(
    ("call", "sizes"),
    [
        (norms, [(768, True, True, "bfloat16", rows) for rows in (640, 999, 4096)]),
        (activations, [(3072, 2048, True, rows) for rows in (640, 999)]),
        (loss, [(50304, v, "bfloat16", True, 0.0, n) for v, n in ((50257, 64), (50256, 4096))]),
    ],
)
def test_one_compiled_kernel_serves_every_number_of_rows(call, sizes):
    keys = [[c.key for c in compile_for("sm_90", call, *args)] for args in sizes]
    assert all(key == keys[0] for key in keys)
