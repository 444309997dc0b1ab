"""Proofs in exact algebra that every kernel computes what a plain one does, whatever its tiles.

Each operation on float32 numbers is replaced by one on integers modulo 2^32, to which a bijection
takes them that keeps 0, 1, -1 and signs: sums and products are those of the ring, whose laws hold
to the bit; exp2 is a power, so that sums become products; 1/x is the inverse of an odd number, some
number otherwise; maxima are of integers; rsqrt and log are without any law. What two kernels
compute is then equal in every bit if it is by these laws, and else hardly ever.

On a GPU the compiler does this, by `instrumentation_mode = "fpsan"` from Triton 3.8 on: these tests
are marked `cuda`, and have never run. Elsewhere our interpreter does, by a bijection of its own.

Not proved, for want of a law: 16-bit numbers, as casts keep no products; the log-sum-exp of
attention, a maximum of products; o of rows that see an even number of keys, whose sum has no
inverse; dq of the one-pass backward, whose atomic additions stay those of floats. The head of
`linear_cross_entropy` is PyTorch's product around the kernel of `cross_entropy`.
"""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

import kernels._attention.kernels
import kernels._norm.kernels
import kernels.cross_entropy
import kernels.gelu
import kernels.interpreter.language
import kernels.swiglu
from kernels._attention import operators as attention
from kernels._attention.tiles import Tile, Tiles
from kernels._common.launch import INTERPRETED
from kernels._norm import operators as norm
from kernels.gelu import CUBIC, LOG2E, TWO_K
from kernels.interpreter.builder import GroupBuilder
from tests.kernels.codegen import compile_for
from tests.kernels.fused import one_multiprocessor
from tests.kernels.mutations import Mutation, mutant
from tests.kernels.test_attention_codegen import launch as launch_attention
from tests.kernels.test_fused_codegen import activations, loss, norms

OLD = tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 8)
WITHOUT = "fpsan came with Triton 3.8"

# ---- the algebra in our interpreter

MAGNITUDE = (1 << 31) - 1
INVERSE = pow(127, -1, 1 << 31)  # the bits of 1.0 are 127 << 23


def embed(x: Tensor) -> Tensor:
    bits = x.view(torch.int32).long()
    size = bits & MAGNITUDE
    size = (size >> 23 | size << 8) * INVERSE & MAGNITUDE
    return torch.where(bits < 0, (-size & MAGNITUDE) - (1 << 31), size)


def unembed(payload: Tensor) -> Tensor:
    payload = payload.int().long()  # modulo 2^32
    size = torch.where(payload < 0, -payload, payload) * 127 & MAGNITUDE
    bits = (size << 23 | size >> 8) & MAGNITUDE
    return torch.where(payload < 0, bits - (1 << 31), bits).int().view(torch.float32)


def power(x: Tensor) -> Tensor:
    """5^x, which x modulo 2^30 decides."""
    result, base = torch.ones_like(x), 5
    for bit in range(30):
        result = torch.where(x >> bit & 1 > 0, result * base & 0xFFFFFFFF, result)
        base = base * base & 0xFFFFFFFF
    return result


def inverse(x: Tensor) -> Tensor:
    odd = x | 1
    found = odd
    for _ in range(4):
        found = found * (2 - odd * found)
    return found & -2 | x & 1


OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "fadd": torch.add, "fsub": torch.sub, "fmul": torch.mul, "fneg": torch.neg,
    "fdiv": lambda x, y: x * inverse(y), "fma": lambda x, y, z: x * y + z, "exp2": power,
    "maxnumf": torch.maximum, "minnumf": torch.minimum,
    "log2": lambda x: x * 314159 ^ 2, "rsqrt": lambda x: x * 314159 ^ 3,
    "log": lambda x: x * 314159 ^ 5, "dot": lambda x, y, total, *_: x @ y + total,
}  # fmt: skip


def on_payloads(function: Callable[..., Tensor]) -> Callable[..., Any]:
    def operation(self: GroupBuilder, *operands: Any) -> Any:
        payloads = [embed(x.data) if hasattr(x, "data") else x for x in operands]
        return self.handle(operands[0].dtype, unembed(function(*payloads)))

    return operation


class Setting(NamedTuple):
    patch: pytest.MonkeyPatch
    folder: Path
    device: torch.device

    def rand(self, *shape: int) -> Tensor:
        return torch.rand(shape, device=self.device) + 0.5

    def planted(self, module: ModuleType, *edits: tuple[str, str]) -> ModuleType:
        """Import the module with these fragments of its source replaced."""
        for old, new in edits:
            count = Path(str(module.__file__)).read_text().count(old)
            module = mutant(module, Mutation(old, old, new, pytest.fail, count=count), self.folder)
        return module


@pytest.fixture(params=["interpreter", pytest.param("fpsan", marks=pytest.mark.cuda)])
def setting(request, monkeypatch, tmp_path, device) -> Setting:
    if (request.param == "interpreter") != INTERPRETED:
        pytest.skip("kernels are compiled here")
    if INTERPRETED:
        for name, function in OPERATIONS.items():
            monkeypatch.setattr(GroupBuilder, f"create_{name}", on_payloads(function))
        monkeypatch.setattr(kernels.interpreter.language, "_known_reduction", lambda *_: None)
    elif OLD:
        pytest.skip(WITHOUT)
    else:
        monkeypatch.setattr(triton.knobs.compilation, "instrumentation_mode", "fpsan")
    one_multiprocessor(monkeypatch)
    return Setting(monkeypatch, tmp_path, device)


def assert_same_bits(got: Any, want: Any) -> None:
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a.view(torch.int32), b.reshape(a.shape).view(torch.int32))


# ---- each kernel beside a plain one, in which a program computes everything


@triton.jit
def plain_attention_kernel(x_ptr, lse_ptr, out_ptr, scale, T: tl.constexpr, D: tl.constexpr):
    """q, k, v, do and the o of the backward (5, T, D) -> o, dq, dk, dv (4, T, D)."""
    rows = tl.arange(0, T)
    place = rows[:, None] * D + tl.arange(0, D)[None, :]
    q = tl.load(x_ptr + place)
    k = tl.load(x_ptr + T * D + place)
    v = tl.load(x_ptr + 2 * T * D + place)
    do = tl.load(x_ptr + 3 * T * D + place)
    o = tl.load(x_ptr + 4 * T * D + place)
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2E)
    seen = rows[:, None] >= rows[None, :]
    e = tl.where(seen, tl.exp2(s), 0.0)
    tl.store(out_ptr + place, tl.dot(e, v, input_precision="ieee") / tl.sum(e, 1)[:, None])
    p = tl.where(seen, tl.exp2(s - tl.load(lse_ptr + rows)[:, None]), 0.0)
    dp = tl.dot(do, tl.trans(v), input_precision="ieee")
    ds = p * (dp - tl.sum(o * do, 1)[:, None]) * scale
    tl.store(out_ptr + T * D + place, tl.dot(ds, k, input_precision="ieee"))
    tl.store(out_ptr + 2 * T * D + place, tl.dot(tl.trans(ds), q, input_precision="ieee"))
    tl.store(out_ptr + 3 * T * D + place, tl.dot(tl.trans(p), do, input_precision="ieee"))


# Here exp2 of the -inf of a hidden score is not zero, so it has to be made zero; and no NaN arises
# from a row that sees nothing.
HIDDEN = (
    ('tl.where(new_max == float("-inf"), 0.0, new_max)', "new_max"),
    ("p = tl.exp2(s * scale2 - top[:, None])", "p = tl.exp2(s * scale2 - top[:, None])\n"
     "            if part != WHOLE:\n                p = tl.where(seen, p, 0.0)"),
)  # fmt: skip


def run_attention(
    setting, x, lse, tile, faults, window=None, dropout_p=0.0, documents=None
) -> list[Tensor]:  # fmt: skip
    """o, dq, dk and dv in two passes, and dk and dv in one, of (5, T, D) as the plain kernel's."""
    module = setting.planted(kernels._attention.kernels, *HIDDEN, *faults)
    for name in ("fwd", "bwd_dq", "bwd_dkv", "bwd_delta"):
        name = f"attention_{name}_kernel"
        setting.patch.setattr(attention, name, getattr(module, name))
    setting.patch.setattr(attention, "choose_tiles", lambda *_: Tiles(tile, tile, tile))
    q, k, v, do, o = x[:, None, :, None]
    seed = torch.tensor([7], device=setting.device) if dropout_p else None
    options = (seed, documents, 0.3, window, dropout_p, False)
    out, *_ = attention.attention_fwd(q, k, v, *options, False)
    backward = (do, q, k, v, o, lse[None, None], *options)
    two, one = (attention.attention_bwd(*backward, way, True, True) for way in (True, False))
    return [out, *two, *one[1:]]


def check_attention(setting, tile, *faults):
    T, D = 64, 16
    x, lse = setting.rand(5, T, D), setting.rand(T)
    want = torch.empty(4, T, D, device=setting.device)
    plain_attention_kernel[(1,)](x, lse, want, 0.3, T=T, D=D)
    o, *gradients = run_attention(setting, x, lse, tile, faults)
    assert_same_bits([o[:, ::2]], [want[0, ::2]])
    assert_same_bits(gradients, [*want[1:], *want[2:]])


@triton.jit
def plain_norm_kernel(
    x_ptr, vectors_ptr, out_ptr, sums_ptr, eps,
    N: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr, CENTRED: tl.constexpr,
):  # fmt: skip
    """x, residual, dy, dtotal (4, N, C), weight, bias (2, C) -> y, dx (2, N, C), dweight, dbias."""
    cols = tl.arange(0, BLOCK)
    inside = (cols < C)[None, :]
    place = tl.arange(0, N)[:, None] * C + cols[None, :]
    x = tl.load(x_ptr + place, inside, 0.0) + tl.load(x_ptr + N * C + place, inside, 0.0)
    weight = tl.load(vectors_ptr + cols, cols < C, 0.0)[None, :]
    if CENTRED:
        x = tl.where(inside, x - tl.sum(x, 1)[:, None] / C, 0.0)
    rstd = tl.rsqrt(tl.sum(x * x, 1)[:, None] / C + eps)
    y = weight * (x * rstd)
    if CENTRED:
        y += tl.load(vectors_ptr + C + cols, cols < C, 0.0)[None, :]
    tl.store(out_ptr + place, y, inside)
    dy = tl.load(x_ptr + 2 * N * C + place, inside, 0.0)
    slope = tl.sum(dy * weight * x * rstd, 1)[:, None] / C
    dx = dy * weight - x * rstd * slope
    if CENTRED:
        dx -= tl.sum(dy * weight, 1)[:, None] / C
    dtotal = tl.load(x_ptr + 3 * N * C + place, inside, 0.0)
    tl.store(out_ptr + N * C + place, dx * rstd + dtotal, inside)
    tl.store(sums_ptr + cols, tl.sum(dy * (x * rstd), 0), cols < C)
    tl.store(sums_ptr + C + cols, tl.sum(dy, 0), cols < C)


def check_norm(setting, plan, *faults):
    N, C = 16, 100
    values, centred = plan
    setting.patch.setattr(norm, "FWD_VALUES", values)
    setting.patch.setattr(norm, "BWD_VALUES", values)
    module = setting.planted(kernels._norm.kernels, *faults)
    for name in ("norm_fwd_kernel", "norm_bwd_kernel"):
        setting.patch.setattr(norm, name, getattr(module, name))
    x, vectors = setting.rand(4, N, C), setting.rand(2, C)
    want, sums = torch.empty_like(x[:2]), torch.empty_like(vectors)
    plain_norm_kernel[(1,)](x, vectors, want, sums, 0.01, N=N, C=C, BLOCK=128, CENTRED=centred)
    bias = vectors[1] if centred else None
    y, total, stats = norm.norm_fwd(x[0], x[1], vectors[0], bias, 0.01, centred, x.dtype)
    dx, _, *got = norm.norm_bwd(
        x[2], x[3], total, vectors[0], stats, centred, x.dtype, True, centred
    )
    assert_same_bits([y, dx, *got[: 1 + centred]], [*want, *sums[: 1 + centred]])


@triton.jit
def plain_activations_kernel(x_ptr, bias_ptr, out_ptr, dbias_ptr, N: tl.constexpr, C: tl.constexpr):
    """x, up, dy (3, N, C), bias -> GELU's y, dx; SwiGLU's y, dgate, dup (5, N, C); GELU's dbias."""
    place = tl.arange(0, N)[:, None] * C + tl.arange(0, C)[None, :]
    x, up = tl.load(x_ptr + place), tl.load(x_ptr + N * C + place)
    dy = tl.load(x_ptr + 2 * N * C + place)
    z = x + tl.load(bias_ptr + tl.arange(0, C))[None, :]
    power = z * z * z * (-CUBIC * TWO_K * LOG2E) - z * (TWO_K * LOG2E)
    tl.store(out_ptr + place, z / (1 + tl.exp2(power)))
    e = tl.exp2(tl.minimum(power, 115.0))
    s = tl.where(power > 115.0, 0.0, 1 / (1 + e))
    dx = dy * s + dy * e * s * s * (z * TWO_K + z * z * z * (3 * CUBIC * TWO_K))
    tl.store(out_ptr + N * C + place, dx)
    tl.store(dbias_ptr + tl.arange(0, C), tl.sum(dx, 0))
    s = 1 / (1 + tl.exp2(-(x * LOG2E)))
    tl.store(out_ptr + 2 * N * C + place, up * x * s)
    tl.store(out_ptr + 3 * N * C + place, dy * up * s * (1 + x - x * s))
    tl.store(out_ptr + 4 * N * C + place, x * dy * s)


def check_activations(setting, values, *faults, swiglu=False):
    N, C = 32, 64
    module = setting.planted(kernels.swiglu if swiglu else kernels.gelu, *faults)
    for name in ("VALUES",) if swiglu else ("FWD_VALUES", "BWD_VALUES"):
        setting.patch.setattr(module, name, values)
    x, bias = setting.rand(3, N, C), setting.rand(C)
    want, dbias = torch.empty(5, N, C, device=setting.device), torch.empty_like(bias)
    plain_activations_kernel[(1,)](x, bias, want, dbias, N=N, C=C)
    if swiglu:
        got = [module._fwd(x[0], x[1]), *module._bwd(x[2], x[0], x[1])]
        assert_same_bits(got, want[2:])
    else:
        got = [module._fwd(x[0], bias), *module._bwd(x[2], x[0], bias, True)]
        assert_same_bits(got, [*want[:2], dbias])


def check_swiglu(setting, values, *faults):
    check_activations(setting, values, *faults, swiglu=True)


@triton.jit
def plain_loss_kernel(
    x_ptr, targets_ptr, weights_ptr, losses_ptr, dx_ptr, count, smoothing, z_loss,
    N: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    rows, cols = tl.arange(0, N), tl.arange(0, V)
    x = tl.load(x_ptr + rows[:, None] * V + cols[None, :])
    hit = cols[None, :] == tl.load(targets_ptr + rows)[:, None]
    share = tl.load(weights_ptr + rows) / count
    top = tl.max(x, 1)
    e = tl.exp2((x - top[:, None]) * LOG2E)
    total = tl.sum(e, 1)
    lse = tl.log(total) + top
    wanted = tl.where(hit, 1.0 - smoothing, 0.0) + smoothing / V
    loss = lse + z_loss * lse * lse - tl.sum(wanted * x, 1)
    tl.store(losses_ptr + rows, loss * share)
    p = e / total[:, None] * (1.0 + 2.0 * z_loss * lse)[:, None]
    tl.store(dx_ptr + rows[:, None] * V + cols[None, :], (p - wanted) * share[:, None])


def check_loss(setting, plan, *faults):
    N, V = 4, 1024
    loads, threads = plan
    module = setting.planted(kernels.cross_entropy, *faults)
    for name, value in (("SMOOTHED_LOADS", loads), ("SHORT_THREADS", threads)):
        setting.patch.setattr(module, name, value)
    x, weights, count = setting.rand(N, V), setting.rand(N), setting.rand(1)
    targets = torch.tensor([0, 5, 600, V - 1], device=setting.device)
    losses, dx, want_losses, want_dx = (torch.empty_like(t) for t in (weights, x) * 2)
    arguments = (x, targets, weights, want_losses, want_dx, count.item(), 0.1, 0.01)
    plain_loss_kernel[(1,)](*arguments, N=N, V=V)
    module.launch_cross_entropy(
        x, targets, weights, count, losses, dx, V, -100, 0.1, 0.01, mean=True
    )
    assert_same_bits([losses, dx], [want_losses, want_dx])


SMALL = {  # a plan of each, for the planted faults
    check_attention: Tile(32, 16, 4, 1), check_norm: (1, True), check_activations: 4,
    check_swiglu: 4, check_loss: (2, 64),
}  # fmt: skip
PLANS = [
    *SMALL.items(), (check_attention, Tile(16, 32, 4, 1)), (check_attention, Tile(64, 64, 4, 1)),
    (check_norm, (4, True)), (check_norm, (1, False)), (check_norm, (16, False)),
    (check_activations, 16), (check_swiglu, 16), (check_loss, (1, 128)), (check_loss, (4, 32)),
]  # fmt: skip


@pytest.mark.parametrize(("check", "plan"), PLANS)
def test_a_kernel_computes_what_a_plain_one_does(check, plan, setting):
    check(setting, plan)


@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [
        (check_attention, "acc * rescale[:, None]", "acc"),
        (check_attention, "dp - delta[:, None]", "dp + delta[:, None]"),
        (check_attention, "dp - delta[None, :]", "dp + delta[None, :]"),
        (check_norm, "pieces[i] - mean", "pieces[i] + mean"),
        (check_norm, "slope + shift", "slope - shift"),
        (check_activations, "z * z * (-CUBIC", "z * z * (CUBIC"),
        (check_activations, "(e * s) * s", "(e * s)"),
        (check_swiglu, "gate * -LOG2E", "gate * LOG2E"),
        (check_swiglu, "1 - s", "1 + s"),
        (check_loss, "total * tl.exp2((top - shift)", "total * tl.exp2((shift - top)"),
        (check_loss, "slope - spread - hit", "slope - spread + hit"),
    ],
)
def test_a_planted_fault_shows(check, right, wrong, setting):
    with pytest.raises(AssertionError):
        check(setting, SMALL[check], (right, wrong))


@pytest.mark.parametrize(
    "options", [{"window": 21}, {"dropout_p": 0.4}, {"documents": True}], ids=str
)
def test_attention_with_options_is_the_same_in_all_tiles(options, setting):
    T, D = 53, 16
    x, lse = setting.rand(5, T, D), setting.rand(T)
    begins = torch.zeros(T, dtype=torch.int32, device=setting.device)
    if "documents" in options:
        begins[19:] = 19
        ends = torch.where(begins == 0, 19, T)
        options = {"documents": torch.stack([begins, ends]).int()[:, None]}
    keys = (torch.arange(T, device=setting.device) - begins + 1).clamp(max=options.get("window", T))
    (want, *gradients), *others = (
        run_attention(setting, x, lse, Tile(m, n, 4, 1), (), **options)
        for m, n in ((64, 64), (16, 32), (32, 16))
    )
    for o, *found in others:
        assert_same_bits([o[:, keys % 2 == 1]], [want[:, keys % 2 == 1]])
        assert_same_bits(found, gradients)


# ---- the compiler's side of it, without a GPU

LAUNCHES: dict[str, Callable[..., None]] = {
    "attention": launch_attention, "norms": norms, "activations": activations, "loss": loss,
}  # fmt: skip


def launch_sanitized(name: str, *args: Any) -> None:
    """In the compiling process."""
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.instrumentation_mode = "fpsan"
        LAUNCHES[name](*args)


@pytest.mark.skipif(OLD, reason=WITHOUT)
@pytest.mark.parametrize(
    "args",
    [
        ("loss", 1024, 1024, "float32", True, 0.1),
        *(
            pytest.param(args, marks=pytest.mark.slow)
            for args in [
                ("attention", 16, 128, False, 2, "float32"),
                ("attention", 16, 128, True, 2, "float32"),
                ("norms", 768, True, True),
                ("norms", 768, False, False),
                ("activations", 3072, 2048),
            ]
        ),
    ],
    ids=str,
)
def test_the_sanitizer_leaves_no_product_of_floats(args):
    """Each kernel compiles with it, into more instructions than without."""
    plain = compile_for("sm_90", LAUNCHES[args[0]], *args[1:])
    for before, c in zip(plain, compile_for("sm_90", launch_sanitized, *args), strict=True):
        assert c.kernel == before.kernel
        assert c.instructions > before.instructions, c
        assert not any(c.matrix.values()), c
