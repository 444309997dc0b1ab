"""The code that attention compiles to on every GPU family, examined without a GPU."""

import itertools

import pytest
import torch
import triton

from kernels._attention.operators import attention_bwd, attention_fwd
from kernels._attention.tiles import SHORT, Tiles, choose_tiles
from tests.kernels.codegen import SHARED_LIMIT, TENSOR_CORE, Code, compile_for

TARGETS = list(TENSOR_CORE)
WIDTHS = [64, 128]
# Instructions of a warp for a whole tile and for one on the diagonal: sm_90, width 64, Triton 3.7
# and newer. (3.6 computes the offsets of the atomic updates again for each.)
MOST = {"fwd": (300, 380), "bwd_dq": (270, 270), "bwd_dkv": (430, 520)}


def rows(target: str, width: int) -> list[Tiles]:
    return [choose_tiles(target, width, length, itemsize=2) for length in (SHORT, 1024)]


# The default path of every target at the width of GPT-2, where the machine code differs: that of
# sm_89 is that of sm_86, in every figure. Slow: the rest, short sequences where the table has tiles
# of their own.
CASES = [
    pytest.param(
        target, width, length, deterministic,
        marks=[] if case == (64, 1024, False) and target != "sm_89" else pytest.mark.slow,
    )
    for target, width in itertools.product(TARGETS, WIDTHS)
    for length in ([1024] if len(set(rows(target, width))) == 1 else [SHORT, 1024])
    for deterministic in (False, True)
    if (case := (width, length, deterministic))
]  # fmt: skip


def launch(
    width, length, deterministic=False, batch=2, dtype="float16", window=None, dropout_p=0.0,
    allow_tf32=False, within_documents=False,
):  # fmt: skip
    """In the compiling process: the forward, and the backward in one pass or in two."""
    qkv = torch.empty((batch, length, 3, 12, width), dtype=getattr(torch, dtype))
    q, k, v = qkv.unbind(2)
    seed = torch.zeros(1, dtype=torch.int64) if dropout_p > 0 else None
    documents = None
    if within_documents:
        documents = torch.zeros(2, batch, length, dtype=torch.int32)
    options = (seed, documents, 0.125, window, dropout_p, allow_tf32)
    o, lse, _ = attention_fwd(q, k, v, *options, False)
    attention_bwd(o, q, k, v, o, lse, *options, deterministic, True, True)


def code(target: str, width: int, length: int, *options: object) -> list[Code]:
    """The kernels with a product, in the order launched."""
    compiled = compile_for(target, launch, width, length, *options)
    return [c for c in compiled if "delta" not in c.kernel]


def check_fits(compiled: list[Code]) -> None:
    for c in compiled:
        assert c.shared <= SHARED_LIMIT[c.target], c
        assert not c.serialised, c
        assert c.matrix[TENSOR_CORE[c.target]] > 0, c


@pytest.mark.parametrize(("target", "width", "length", "deterministic"), CASES)
def test_tensor_cores_and_no_spills(target, width, length, deterministic):
    compiled = code(target, width, length, deterministic)
    names = ["fwd", "bwd_dq", "bwd_dkv"] if deterministic else ["fwd", "bwd_dkv"]
    assert [c.kernel for c in compiled] == [f"attention_{name}_kernel" for name in names]
    check_fits(compiled)
    for c in compiled:
        assert c.spills == 0, c
        assert c.wide_loads > 0, c
    if (width, length) == (64, 1024) and target in ("sm_80", "sm_86", "sm_90", "sm_100"):
        # While one program of the forward waits for a product, another has its softmax to do.
        assert compiled[0].programs_per_sm >= 2, compiled[0]
    if target == "gfx942" and length == 1024:
        assert compiled[-1].registers <= 256, compiled[-1]  # two waves of a SIMD's registers
    if (target, width, length) == ("sm_90", 64, 1024) and triton.__version__ >= "3.7":
        for name, c in zip(names, compiled, strict=True):
            tiles = [loop.instructions for loop in c.products]
            whole, diagonal = MOST[name]
            assert min(tiles) <= whole, c
            assert max(tiles) <= diagonal, c


@pytest.mark.slow
@pytest.mark.parametrize("width", [192, 256])
@pytest.mark.parametrize("target", [target for target in TARGETS if target != "sm_89"])
def test_wide_heads_do_not_spill_either(target, width, deterministic):
    for c in code(target, width, 1024, deterministic):
        assert c.shared <= SHARED_LIMIT[target], c
        assert c.spills == 0, c
        # Tiles of 32 rows are below what a warp group multiplies: there it is HMMA everywhere.
        assert any(c.matrix.values()), c


ONE_PASS_OR_SLOW = pytest.mark.parametrize(
    "deterministic", [False, pytest.param(True, marks=pytest.mark.slow)]
)


EVERY_ROW = pytest.mark.parametrize(
    ("target", "width"),
    [
        pytest.param(
            target, width, marks=[] if (target, width) == ("sm_90", 64) else pytest.mark.slow
        )
        for target, width in itertools.product(TARGETS, WIDTHS)
        if target != "sm_89"
    ],
)


@ONE_PASS_OR_SLOW
@pytest.mark.parametrize(("window", "dropout_p"), [(128, 0.0), (None, 0.1), (128, 0.1)])
@EVERY_ROW
def test_a_window_and_dropout_take_tensor_cores_and_spill_nothing(
    target, width, window, dropout_p, deterministic
):
    for length in [1024] if len(set(rows(target, width))) == 1 else [SHORT, 1024]:
        compiled = code(target, width, length, deterministic, 2, "bfloat16", window, dropout_p)
        for c in compiled:
            assert c.shared <= SHARED_LIMIT[target], c
            assert not c.serialised, c
            assert any(c.matrix.values()), c
            assert c.spills == 0, c


@ONE_PASS_OR_SLOW
@EVERY_ROW
def test_documents_take_tensor_cores_and_spill_nothing(target, width, deterministic):
    """Tiles of 32 rows are below what a warp group multiplies: there it is HMMA everywhere."""
    options = (deterministic, 2, "bfloat16", None, 0.0, False, True)
    for c in code(target, width, 1024, *options):
        assert c.shared <= SHARED_LIMIT[target], c
        assert c.spills == 0, c
        assert any(c.matrix.values()), c


def test_one_compiled_kernel_serves_every_length_and_batch():
    sizes = [(1024,), (999, False, 1), (4096, False, 3)]
    keys = [[c.key for c in code("sm_90", 64, *size)] for size in sizes]
    assert keys[0] == keys[1] == keys[2]


@ONE_PASS_OR_SLOW
def test_float32_takes_tensor_cores_only_when_told(deterministic):
    for allowed in (False, True):
        for c in code("sm_90", 16, 1024, deterministic, 2, "float32", None, 0.0, allowed):
            assert bool(c.matrix["HMMA"] + c.matrix["HGMMA"]) == allowed, c


@ONE_PASS_OR_SLOW
def test_turing_compiles_without_tensor_cores(deterministic):
    """Triton emits none for sm_75: attention runs there, slowly."""
    for c in code("sm_75", 16, 1024, deterministic):
        assert c.shared <= SHARED_LIMIT["sm_75"], c
        assert not any(c.matrix.values()), c


@pytest.mark.parametrize("width", [1, 16, 64, 80, 128, 160, 256])
@pytest.mark.parametrize("architecture", [*TARGETS, "interpreter", "sm_75", "gfx90a"])
def test_every_problem_has_tiles(architecture, width):
    for length, itemsize in itertools.product((1, SHORT, SHORT + 1, 10**6), (2, 4)):
        tiles = choose_tiles(architecture, width, length, itemsize)
        assert all(n & (n - 1) == 0 and 16 <= n <= 128 for t in tiles for n in t[:2])
