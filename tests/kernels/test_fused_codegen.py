"""The code that the fused kernels compile to on every GPU family, examined without a GPU."""

from typing import Any

import pytest
import torch

import kernels.gelu
import kernels.swiglu
from kernels._norm import operators as norm
from kernels.cross_entropy import LOADS, launch_cross_entropy
from tests.kernels.codegen import SHARED_LIMIT, Code, Job, compile_jobs

HERE = "tests.kernels.test_fused_codegen"
# The first test to need them compiles all reports: minutes, on a slow machine many.
pytestmark = pytest.mark.timeout(1800)
TARGETS = list(SHARED_LIMIT)
REGISTER_LIMIT = {target: 512 if target == "gfx942" else 255 for target in TARGETS}


# ---- in the compiling process


def norms(width, added, centred, stream="bfloat16", rows=640):
    x = torch.empty(rows, width, dtype=torch.bfloat16)
    residual = torch.empty(rows, width, dtype=getattr(torch, stream)) if added else None
    weight = torch.empty(width)
    norm.norm_fwd(x, residual, weight, weight if centred else None, 1e-5, centred, x.dtype)
    stats = torch.empty(1 + centred, rows)
    saved = x if residual is None else residual
    norm.norm_bwd(x, residual, saved, weight, stats, centred, x.dtype, True, centred)


def activations(width: int, swiglu_width: int, rows: int = 640) -> None:
    x, bias = torch.empty(rows, width, dtype=torch.bfloat16), torch.empty(width)
    kernels.gelu._fwd(x, bias)
    kernels.gelu._bwd(x, x, bias, True)
    kernels.gelu._fwd(x, None)
    kernels.gelu._bwd(x, x, None, False)
    both = torch.empty(rows, 2 * swiglu_width, dtype=torch.bfloat16)
    gate = both[:, :swiglu_width].contiguous()
    kernels.swiglu._fwd(gate, gate)
    kernels.swiglu._bwd(gate, gate, gate)
    kernels.swiglu._packed_fwd(both)
    kernels.swiglu._packed_bwd(gate, both)


def loss(width, vocab_size, dtype="bfloat16", need_grad=True, label_smoothing=0.0, rows=64):
    logits = torch.empty(rows, width, dtype=getattr(torch, dtype))
    targets, losses = torch.zeros(rows, dtype=torch.int64), torch.empty(rows)
    launch_cross_entropy(
        logits, targets, torch.ones(()), losses, logits if need_grad else None,
        vocab_size, -100, label_smoothing, 0.0, True,
    )  # fmt: skip


# ---- in the test


def code(target: str, call: str, *args: Any) -> list[Code]:
    job = Job(target, f"{HERE}:{call}", args)
    return compile_jobs([job])[job]


WIDTHS = [768, 1024, 1280, 1600]
NORMS = [  # width, with the residual addition, LayerNorm, dtype of the residual stream
    *((width, True, True) for width in WIDTHS),
    (768, False, False),
    (768, False, True),
    (768, True, True, "float32"),
    (1600, True, True, "float32"),
]
ACTIVATIONS = [(3072, 2048), (6400, 4288)]
LOSSES = [(50304, 50257), (50304, 50257, "float32"), (50304, 50257, "bfloat16", True, 0.1)]
# Everything on one target; on the others what is largest, and all of it among the slow tests.
LARGEST = [("norms", NORMS[:4:3]), ("activations", ACTIVATIONS[:1]), ("loss", LOSSES[:1])]
QUICK = dict.fromkeys(TARGETS, LARGEST)
QUICK["sm_90"] = [("norms", NORMS), ("activations", ACTIVATIONS), ("loss", LOSSES)]
LOSS_SIZES = ((50257, 64), (50256, 999), (50304, 4096))  # vocabulary, rows
OTHER_SIZES: list[tuple[str, tuple[Any, ...]]] = [
    *(("norms", (768, True, True, "bfloat16", rows)) for rows in (640, 999, 4096)),
    *(("activations", (3072, 2048, rows)) for rows in (640, 999)),
    *(("loss", (50304, v, "bfloat16", True, 0.0, rows)) for v, rows in LOSS_SIZES),
]
CASES = [
    pytest.param(
        target, call, args, marks=[] if args in dict(QUICK[target])[call] else pytest.mark.slow
    )
    for target in TARGETS
    for call, every in QUICK["sm_90"]
    for args in every
]


def check_norms(target: str) -> None:
    """All of 768 is read and written at 16 bytes per lane, by several programs at a time."""
    forward, backward, _ = code(target, "norms", *NORMS[0])
    fwd = norm.plan_rows(768, 2, norm.FWD_VALUES, norm.FWD_THREADS)
    bwd = norm.plan_rows(768, 2, norm.BWD_VALUES, norm.BWD_THREADS)
    accesses = 768 * fwd.rows // fwd.threads // 8  # of one tensor
    assert (forward.wide_loads, forward.wide_stores) == (2 * accesses, 2 * accesses), forward
    accesses = 768 * bwd.rows // bwd.threads // 8
    assert backward.wide_loads >= 3 * accesses, backward
    assert backward.wide_stores >= accesses, backward
    if target != "gfx942":
        for c in (backward, code(target, "norms", *NORMS[3])[1]):
            assert c.programs_per_sm >= norm.BWD_PROGRAMS, c


def check_activations(target: str) -> None:
    for c in code(target, "activations", *ACTIVATIONS[0]):
        if c.kernel != "sum_partials_kernel":
            assert c.narrow_loads == 0, c
            assert c.wide_stores > 0, c


def check_loss(target: str) -> None:
    """Whole blocks and the tail, in both passes; else only a row's target, its logit, the count."""
    (c,) = code(target, "loss", *LOSSES[0])
    assert c.wide_loads >= 2 * (LOADS + 1), c
    assert c.narrow_loads <= 3, c
    assert c.wide_stores >= LOADS + 1, c
    assert target == "gfx942" or c.programs_per_sm >= 2, c


@pytest.fixture(scope="module", autouse=True)
def _compile_all_at_once() -> None:
    compile_jobs(
        [Job("sm_90", f"{HERE}:{call}", args) for call, args in OTHER_SIZES]
        + [
            Job(target, f"{HERE}:{call}", args)
            for target, calls in QUICK.items()
            for call, every in calls
            for args in every
        ]
    )


@pytest.mark.parametrize(("target", "call", "args"), CASES)
def test_nothing_spills_and_everything_fits(target, call, args):
    for c in code(target, call, *args):
        assert c.spills == 0, c
        assert c.registers <= REGISTER_LIMIT[target], c
        assert c.shared <= SHARED_LIMIT[target], c


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("check", [check_norms, check_activations, check_loss])
def test_memory_is_moved_in_16_bytes_by_several_programs(check, target):
    check(target)


def test_smoothing_lets_two_programs_share_a_multiprocessor_too():
    (c,) = code("sm_90", "loss", *LOSSES[2])
    assert c.programs_per_sm >= 2, c


def test_one_compiled_kernel_serves_every_number_of_rows():
    keys = [[c.key for c in code("sm_90", call, *args)] for call, args in OTHER_SIZES]
    assert keys[0] == keys[1] == keys[2]
    assert keys[3] == keys[4]
    assert keys[5] == keys[6] == keys[7]
