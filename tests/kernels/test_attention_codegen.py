"""The code that attention compiles to on every GPU family, examined without a GPU."""

import itertools

import pytest
import torch

from kernels._attention.operators import attention_bwd, attention_fwd
from kernels._attention.tiles import SHORT, Tiles, choose_tiles
from tests.kernels.codegen import SHARED_LIMIT, TENSOR_CORE, Code, Job, compile_jobs

HERE = "tests.kernels.test_attention_codegen"
# The first test to need them compiles all reports: minutes, on a slow machine many.
pytestmark = pytest.mark.timeout(1800)
TARGETS = list(TENSOR_CORE)
WIDTHS = [64, 128]


def rows(target: str, width: int) -> list[Tiles]:
    return [choose_tiles(target, width, length, itemsize=2) for length in (SHORT, 1024)]


# Short sequences too where the table has tiles of their own; slow but for one target.
CASES = [
    pytest.param(
        target, width, length,
        marks=pytest.mark.slow if length == SHORT and target != "sm_90" else [],
    )
    for target, width in itertools.product(TARGETS, WIDTHS)
    for length in ([1024] if len(set(rows(target, width))) == 1 else [SHORT, 1024])
]  # fmt: skip
# Registers that a thread can have: ptxas spills past them; on CDNA3 512 with the accumulators.
REGISTER_LIMIT = {target: 512 if target == "gfx942" else 255 for target in TARGETS}


def launch(width, length, batch=2, dtype="float16", window=None, dropout_p=0.0, allow_tf32=False):
    """In the compiling process: the forward, the one-pass backward and the two-pass backward."""
    qkv = torch.empty((batch, length, 3, 12, width), dtype=getattr(torch, dtype))
    q, k, v = qkv.unbind(2)
    seed = torch.zeros(1, dtype=torch.int64) if dropout_p > 0 else None
    options = (seed, 0.125, window, dropout_p, allow_tf32)
    o, lse = attention_fwd(q, k, v, *options)
    for deterministic in (False, True):
        attention_bwd(o, q, k, v, o, lse, *options, deterministic, True, True)


def code(target: str, width: int, length: int, *options: object) -> list[Code]:
    """The kernels with a product, in the order launched."""
    job = Job(target, f"{HERE}:launch", (width, length, *options))
    return [c for c in compile_jobs([job])[job] if "delta" not in c.kernel]


WINDOW = (2, "bfloat16", 256)
DROPOUT = (2, "bfloat16", None, 0.1)
OTHER_SIZES = [(999, 1), (4096, 3)]
IEEE, TF32 = ((2, "float32", None, 0.0, allowed) for allowed in (False, True))


@pytest.fixture(scope="module", autouse=True)
def _compile_all_at_once() -> None:
    cases = [case.values for case in CASES if not case.marks]
    jobs = [Job(target, f"{HERE}:launch", tuple(sizes)) for target, *sizes in cases]
    more = [(1024, *options) for options in (WINDOW, DROPOUT, IEEE, TF32)] + OTHER_SIZES
    jobs += [Job("sm_90", f"{HERE}:launch", (64, *each)) for each in more]
    compile_jobs([*jobs, Job("sm_75", f"{HERE}:launch", (64, 1024))])


def check_fits(compiled: list[Code]) -> None:
    for c in compiled:
        assert c.shared <= SHARED_LIMIT[c.target], c
        assert c.registers <= REGISTER_LIMIT[c.target], c
        assert c.matrix[TENSOR_CORE[c.target]] > 0, c


@pytest.mark.parametrize(("target", "width", "length"), CASES)
def test_tensor_cores_and_no_spills(target, width, length):
    compiled = code(target, width, length)
    assert [c.kernel for c in compiled] == [
        "attention_fwd_kernel",
        "attention_bwd_dkv_kernel",
        "attention_bwd_dq_kernel",
        "attention_bwd_dkv_kernel",
    ]
    check_fits(compiled)
    for c in compiled:
        assert c.spills == 0, c
        assert c.wide_loads > 0, c
    if (width, length) == (64, 1024) and target in ("sm_80", "sm_86", "sm_90", "sm_100"):
        # While one program of the forward waits for a product, another has its softmax to do.
        assert compiled[0].programs_per_sm >= 2, compiled[0]


@pytest.mark.slow
@pytest.mark.parametrize("width", [160, 192, 256])
@pytest.mark.parametrize("target", TARGETS)
def test_wide_heads_do_not_spill_either(target, width):
    for c in code(target, width, 1024):
        assert c.shared <= SHARED_LIMIT[target], c
        assert c.spills == 0, c
        # Tiles of 32 rows are below what a warp group multiplies: there it is HMMA everywhere.
        assert any(c.matrix.values()), c


@pytest.mark.parametrize("options", [WINDOW, DROPOUT], ids=["window", "dropout"])
def test_options_keep_the_tensor_cores_and_fit(options):
    check_fits(code("sm_90", 64, 1024, *options))


def test_one_compiled_kernel_serves_every_length_and_batch():
    keys = [[c.key for c in code("sm_90", 64, *size)] for size in ((1024,), *OTHER_SIZES)]
    assert keys[0] == keys[1] == keys[2]


def test_float32_takes_tensor_cores_only_when_told():
    for options, allowed in ((IEEE, False), (TF32, True)):
        for c in code("sm_90", 64, 1024, *options):
            assert bool(c.matrix["HMMA"] + c.matrix["HGMMA"]) == allowed, c


def test_turing_compiles_without_tensor_cores():
    """Triton 3.6 and 3.7 emit none for sm_75: attention runs there, slowly."""
    for c in code("sm_75", 64, 1024):
        assert c.shared <= SHARED_LIMIT["sm_75"], c
        assert not any(c.matrix.values()), c


@pytest.mark.parametrize("width", [1, 16, 64, 80, 128, 160, 256])
@pytest.mark.parametrize("architecture", [*TARGETS, "interpreter", "sm_75", "gfx90a"])
def test_every_problem_has_tiles(architecture, width):
    for length, itemsize in itertools.product((1, SHORT, SHORT + 1, 10**6), (2, 4)):
        tiles = choose_tiles(architecture, width, length, itemsize)
        assert all(n & (n - 1) == 0 and 16 <= n <= 128 for t in tiles for n in t[:2])
