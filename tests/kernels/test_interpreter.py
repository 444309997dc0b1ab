"""The batched interpreter against Triton's own, and on kernels that are not ours."""

import inspect
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels._common.launch import INTERPRETED
from kernels.attention import attention
from kernels.cross_entropy import cross_entropy
from kernels.gelu import gelu_tanh
from kernels.interpreter import batched, record_work
from kernels.layer_norm import add_layer_norm
from kernels.swiglu import swiglu_packed

pytestmark = [
    pytest.mark.skipif(not INTERPRETED, reason="kernels are compiled here"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:triton.runtime.interpreter"),
]


@triton.jit
def softmax_kernel(x_ptr, y_ptr, stride, width, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    cols = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * stride + cols, mask=cols < width, other=float("-inf"))
    e = tl.exp(x - tl.max(x, 0))
    tl.store(y_ptr + row * width + cols, e / tl.sum(e, 0), mask=cols < width)


@triton.jit
def integers_kernel(x_ptr, y_ptr, out_ptr, N: tl.constexpr):
    """Every row of `out` is one operation on integers."""
    i = tl.arange(0, N)
    x = tl.load(x_ptr + i)
    y = tl.load(y_ptr + i)
    ux = x.to(tl.uint32, bitcast=True)
    uy = y.to(tl.uint32, bitcast=True)
    tl.store(out_ptr + i, x // y)
    tl.store(out_ptr + N + i, x % y)
    tl.store(out_ptr + 2 * N + i, x >> 3)
    tl.store(out_ptr + 3 * N + i, (ux >> 3).to(tl.int32, bitcast=True))
    tl.store(out_ptr + 4 * N + i, (ux * uy).to(tl.int32, bitcast=True))
    tl.store(out_ptr + 5 * N + i, tl.umulhi(ux, uy).to(tl.int32, bitcast=True))
    tl.store(out_ptr + 6 * N + i, (ux < uy).to(tl.int32))
    tl.store(out_ptr + 7 * N + i, (ux // uy).to(tl.int32, bitcast=True))
    tl.store(out_ptr + 8 * N + i, x ^ y & 0xFF)
    tl.store(out_ptr + 9 * N + i, x.to(tl.int64).to(tl.int32))
    tl.store(out_ptr + 10 * N + i, x.to(tl.float32).to(tl.int32, bitcast=True))
    tl.store(out_ptr + 11 * N + i, tl.maximum(x, y))
    tl.store(out_ptr + 12 * N + i, tl.minimum(x, y))


@triton.jit
def numbers_kernel(x_ptr, out_ptr, N: tl.constexpr):
    """Equal numbers of different types, and blocks of different ranks."""
    i = tl.arange(0, N)
    x = tl.load(x_ptr + i)
    tl.store(out_ptr + i, x + 1)
    tl.store(out_ptr + N + i, x + 1.0)
    tl.store(out_ptr + 2 * N + i, x.to(tl.int64) + 1)
    for turn in range(2):
        tl.store(out_ptr + (3 + turn) * N + i, tl.sum(x[:, None] * turn + x, 1))


@triton.jit
def bits_kernel(x_ptr, high_ptr, sum_ptr, least_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(x_ptr + i)
    tl.store(high_ptr + i, tl.umulhi(x, x))
    flag = x < 0
    tl.store(sum_ptr + i, (flag + flag).to(tl.int32))
    wide = x.to(tl.int64).to(tl.uint64, bitcast=True)
    tl.store(least_ptr + i, tl.minimum(wide, 5).to(tl.int64, bitcast=True))


@triton.jit
def random_kernel(seed, out_ptr, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + place, tl.rand(seed, place))


@triton.jit
def _larger(a, b):
    return tl.where(a > b, a, b)


@triton.jit
def reductions_kernel(x_ptr, out_ptr, ROWS: tl.constexpr, COLS: tl.constexpr):
    rows = tl.arange(0, ROWS)[:, None]
    cols = tl.arange(0, COLS)[None, :]
    x_ptr += tl.program_id(0) * ROWS * COLS
    out_ptr += tl.program_id(0) * 6 * COLS + tl.arange(0, COLS)
    x = tl.load(x_ptr + rows * COLS + cols)
    tl.store(out_ptr, tl.sum(x, 0))
    tl.store(out_ptr + COLS, tl.max(x, 0))
    tl.store(out_ptr + 2 * COLS, tl.reduce(x, 0, _larger))
    tl.store(out_ptr + 3 * COLS, tl.argmin(x, 0).to(tl.float32))
    tl.store(out_ptr + 4 * COLS, tl.sum(tl.cumsum(x, 0) * rows, 0))
    tl.store(out_ptr + 5 * COLS, tl.full((COLS,), 1.0, tl.float32) * tl.min(x))


@triton.jit
def join_kernel(x_ptr, out_ptr, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    x = tl.load(x_ptr + i)
    pairs = tl.join(x, -x)
    a, b = tl.split(pairs)
    flat = tl.reshape(tl.trans(pairs), (2 * N,))
    tl.store(out_ptr + tl.program_id(0) * 2 * N + tl.arange(0, 2 * N), flat)
    tl.store(x_ptr + i, a * b)


@triton.jit
def histogram_kernel(values_ptr, counts_ptr, highest_ptr, n, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < n
    values = tl.load(values_ptr + place, inside, 0)
    tl.atomic_add(counts_ptr + values, 1, inside)
    tl.atomic_max(highest_ptr, tl.max(values.to(tl.float32) - 3.5, 0))


@triton.jit
def ticket_kernel(counter_ptr, out_ptr):
    tl.store(out_ptr + tl.program_id(0), tl.atomic_add(counter_ptr, 1))


@triton.jit
def collatz_kernel(x_ptr, steps_ptr):
    """Programs that go different ways, after a store that must not be done twice."""
    program = tl.program_id(0)
    x = tl.load(x_ptr + program)
    tl.store(x_ptr + program, x + 1)
    steps = 0
    while x != 1:
        if x % 2 == 1:
            x = 3 * x + 1
        x = x // 2
        steps += 1
    tl.store(steps_ptr + program, steps)


@triton.jit
def strided_loop_kernel(x_ptr, out_ptr, n):
    total = 0.0
    for i in range(tl.program_id(0), n, tl.num_programs(0)):
        total += tl.load(x_ptr + i)
    tl.store(out_ptr + tl.program_id(0), total)


@triton.jit
def matmul_kernel(a_ptr, b_ptr, c_ptr, K, N: tl.constexpr, BLOCK: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[:, None]
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for k in range(0, K, BLOCK):
        a = tl.load(a_ptr + rows * K + k + tl.arange(0, BLOCK)[None, :])
        b = tl.load(b_ptr + (k + tl.arange(0, BLOCK)[:, None]) * N + cols)
        total = tl.dot(a, b, total, input_precision="ieee")
    tl.store(c_ptr + rows * N + cols, total.to(c_ptr.dtype.element_ty))


@triton.jit
def descriptors_kernel(x_ptr, total, rows, cols, ROWS: tl.constexpr, COLS: tl.constexpr):
    x = tl.make_tensor_descriptor(x_ptr, [rows, cols], [cols, 1], [ROWS, COLS])
    place = [tl.program_id(0) * ROWS, tl.program_id(1) * COLS]
    block = x.load(place)
    x.store(place, block * 2)
    total.atomic_add([0, place[1]], tl.sum(block, 0, keep_dims=True))


@triton.jit
def extremum_kernel(of):
    of.atomic_max([0], tl.full((4,), 1, tl.int32))


@triton.jit
def outside_kernel(x_ptr, out_ptr, n):
    program = tl.program_id(0)
    tl.store(out_ptr + program, 1.0)
    tl.store(out_ptr + program, tl.load(x_ptr + program * n))


@triton.jit
def _next_count(counts_ptr, value):
    tl.atomic_add(counts_ptr + 3, value)


@triton.jit
def atomic_outside_kernel(counts_ptr):
    tl.store(counts_ptr, 1)
    _next_count(counts_ptr, 1)


@triton.jit
def exchange_outside_kernel(counts_ptr):
    tl.store(counts_ptr, 1)
    tl.atomic_cas(counts_ptr + 3, 0, 1)


@triton.jit
def wider_kernel(x_ptr, out_ptr):
    tl.store(out_ptr, tl.load((x_ptr + 3).to(tl.pointer_type(tl.int32))))


@triton.jit
def table_kernel(table_ptr, out_ptr):
    x_ptr = tl.load(table_ptr).to(tl.pointer_type(tl.float32))
    tl.store(out_ptr, tl.load(x_ptr))


@triton.jit
def endless_kernel(x_ptr):
    while tl.load(x_ptr) == 0:
        pass


@triton.jit
def block_condition_kernel(x_ptr):
    if tl.load(x_ptr + tl.arange(0, 4)) > 0:
        tl.store(x_ptr, 1.0)


@triton.jit
def assembly_kernel(x_ptr):
    x = tl.load(x_ptr)
    y = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], tl.float32, True, 1)
    tl.store(x_ptr, y)


def ints(*shape: int) -> torch.Tensor:
    return torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32)


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int32)


def product() -> tuple[Any, ...]:
    a, b = torch.randn(32, 64).half(), torch.randn(64, 48).half()
    return a, b, torch.zeros(32, 48).half(), 64


# A kernel, its grid, its arguments and its constants.
CASES = {
    "softmax": (
        softmax_kernel, (5,), lambda: (torch.randn(5, 19), torch.zeros(5, 17), 19, 17),
        {"BLOCK": 32},
    ),
    "integers": (
        integers_kernel, (1,), lambda: (ints(64), ints(64) | 1, zeros(13, 64)), {"N": 64},
    ),
    "numbers": (
        numbers_kernel, (1,), lambda: (ints(4) | 2**31 - 1, torch.zeros(5, 4)), {"N": 4},
    ),
    "philox": (random_kernel, (3,), lambda: (12345678901, torch.zeros(3 * 64)), {"BLOCK": 64}),
    "reductions": (
        reductions_kernel, (3,), lambda: (torch.randn(3, 8, 4), torch.zeros(3, 6, 4)),
        {"ROWS": 8, "COLS": 4},
    ),
    "join": (join_kernel, (3,), lambda: (torch.randn(12), torch.zeros(24)), {"N": 4}),
    "atomics": (
        histogram_kernel, (4,),
        lambda: (torch.randint(0, 5, (100,)), zeros(5), torch.full((1,), -9.0), 100),
        {"BLOCK": 32},
    ),
    "tickets": (ticket_kernel, (5,), lambda: (zeros(1), zeros(5)), {}),
    "different ways": (
        collatz_kernel, (7,), lambda: (torch.arange(1, 8, dtype=torch.int32), zeros(7)), {},
    ),
    "strided loops": (
        strided_loop_kernel, (4,), lambda: (torch.randn(10), torch.zeros(4), 10), {},
    ),
    "fp16 products": (matmul_kernel, (2, 3), product, {"N": 48, "BLOCK": 16}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_programs_together_give_what_they_give_alone(name):
    kernel, grid, arguments, constants = CASES[name]
    results = []
    for together in (True, False):
        torch.manual_seed(0)
        given = arguments()
        with batched(together):
            kernel[grid](*given, **constants)
        results.append([x for x in given if isinstance(x, torch.Tensor)])
    for ours, tritons in zip(*results, strict=True):
        torch.testing.assert_close(
            ours, tritons, atol=1e-6, rtol=1e-3 if ours.dtype == torch.half else 1e-6
        )


def test_bf16_products_are_those_of_pytorch():
    a, b = torch.randn(32, 64).bfloat16(), torch.randn(64, 48).bfloat16()
    c = torch.zeros(32, 48, dtype=torch.bfloat16)
    matmul_kernel[(2, 3)](a, b, c, 64, N=48, BLOCK=16)
    torch.testing.assert_close(c, (a.float() @ b.float()).bfloat16(), atol=1e-2, rtol=1e-2)
    with batched(False), pytest.raises(InterpreterError, match="the bits of bfloat16 as integers"):
        matmul_kernel[(2, 3)](a, b, c, 64, N=48, BLOCK=16)


def test_bits_are_those_of_a_gpu():
    """Triton's interpreter has them wrong before 3.9."""
    x = torch.tensor([-1, -2, 3, 1 << 30], dtype=torch.int32)
    high, total = torch.zeros_like(x), torch.ones_like(x)
    least = torch.zeros(4, dtype=torch.int64)
    bits_kernel[(1,)](x, high, total, least, N=4)
    assert high.tolist() == [-2, -4, 0, 1 << 28]
    assert total.tolist() == [0, 0, 0, 0]
    assert least.tolist() == [5, 5, 3, 5]


def test_groups_are_cut_to_their_budget(monkeypatch):
    monkeypatch.setattr("kernels.interpreter.builder.LARGEST_VALUE", 64)
    monkeypatch.setattr("kernels.interpreter.launch.LARGEST_VALUE", 64)
    x, y = torch.randn(9, 17), torch.zeros(9, 17)
    softmax_kernel[(9,)](x, y, 17, 17, BLOCK=32)
    torch.testing.assert_close(y, x.softmax(1))


@pytest.mark.parametrize("mode", ["autocast", "inference", "medium", "saved"])
def test_the_state_of_pytorch_does_not_reach_the_kernel(mode):
    a, b, c = torch.randn(32, 64), torch.randn(64, 48), torch.zeros(32, 48)
    expected = a @ b
    if mode == "saved":  # autograd sees no write, as on a GPU
        weight = torch.randn(32, 48, requires_grad=True)
        product = (weight * c).sum()
        matmul_kernel[(2, 3)](a, b, c, 64, N=48, BLOCK=16)
        product.backward()
    elif mode == "medium":
        torch.set_float32_matmul_precision("medium")
        try:
            matmul_kernel[(2, 3)](a, b, c, 64, N=48, BLOCK=16)
            assert torch.get_float32_matmul_precision() == "medium"
        finally:
            torch.set_float32_matmul_precision("highest")
    else:
        with torch.autocast("cpu") if mode == "autocast" else torch.inference_mode():
            matmul_kernel[(2, 3)](a, b, c, 64, N=48, BLOCK=16)
    torch.testing.assert_close(c, expected)


@pytest.mark.parametrize("together", [True, False])
def test_an_access_outside_names_kernel_line_and_program(together):
    """Also where another tensor of the launch lies; and leaves no trace."""
    memory = torch.cat([torch.zeros(3), torch.randn(10), torch.zeros(4)])
    x = memory[3:13]
    for out, step, line, message in (
        (memory[13:], 4, 2, "load outside x_ptr: element 12 of 10"),
        (memory[:3], 1, 1, "store outside out_ptr: element 3 of 3"),
    ):
        line += inspect.getsourcelines(outside_kernel.fn)[1] + 2
        with batched(together), pytest.raises(InterpreterError) as caught:
            outside_kernel[(4,)](x, out, step)
        assert str(caught.value) == (
            f"outside_kernel, {__file__}:{line}, program (3, 0, 0): {message}"
        )
        assert not out.any()


@pytest.mark.parametrize("kernel", [atomic_outside_kernel, exchange_outside_kernel])
def test_an_update_outside_is_seen_by_tritons_interpreter_too(kernel):
    counts = torch.zeros(6, dtype=torch.int32)
    message = "update outside counts_ptr: element 3 of 3"
    with batched(False), pytest.raises(InterpreterError, match=message):
        kernel[(2,)](counts[:3])
    assert not counts.any()


def test_an_element_that_ends_outside_is_outside():
    x, out = torch.zeros(6, dtype=torch.uint8), torch.zeros(1, dtype=torch.int32)
    with batched(False), pytest.raises(InterpreterError, match=r"x_ptr: element 0.75 of 1.5"):
        wider_kernel[(1,)](x, out)


def test_pointers_from_integers_are_not_held_to_the_tensors():
    x, out = torch.randn(1), torch.zeros(1)
    with batched(False):
        table_kernel[(1,)](torch.tensor([x.data_ptr()]), out)
    assert out == x


@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        (block_condition_kernel, "not supported by this interpreter: a block of values as a cond"),
        (extremum_kernel, "not supported by this interpreter: atomic_max of a tensor descriptor"),
        (assembly_kernel, "not supported by this interpreter: inline_asm"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(kernel, said):
    x = torch.ones(4, dtype=torch.int32)
    with pytest.raises(InterpreterError, match=said):
        kernel[(1,)](TensorDescriptor(x, [4], [1], [4]) if kernel is extremum_kernel else x)
    assert x.tolist() == [1] * 4


def test_descriptors_are_cut_at_the_edges_of_their_tensor():
    given, total = ints(13, 20), zeros(20)
    x = torch.nn.functional.pad(given, (0, 0, 0, 2), value=5)
    descriptors_kernel[(4, 3)](x, TensorDescriptor(total, [1, 20], [20, 1], [1, 8]), 13, 20, 4, 8)
    assert torch.equal(total, given.sum(0, dtype=torch.int32))
    assert torch.equal(x, torch.cat([given * 2, x.new_full((2, 20), 5)]))


def test_a_kernel_that_does_not_end_is_told(monkeypatch):
    monkeypatch.setattr("kernels.interpreter.language.MOST_TURNS", 1000)
    with pytest.raises(InterpreterError, match="does not end within 1,000 turns of its loops"):
        endless_kernel[(2,)](torch.zeros(1))


@pytest.mark.parametrize("interpret", ["0", "1"])
def test_compiled_kernels_are_not_interpreted(interpret):
    script = "from kernels.interpreter import batched\nwith batched(): print('done')"
    environment = os.environ | {"TRITON_INTERPRET": interpret, "PYTHONPATH": os.getcwd()}
    child = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    refused = "set TRITON_INTERPRET=1 before Triton is imported" in child.stderr
    assert (refused, child.stdout) == ((True, "") if interpret == "0" else (False, "done\n"))


def test_work_is_counted_by_argument():
    a, b, c = torch.randn(32, 64).half(), torch.randn(64, 48).half(), torch.zeros(32, 48).half()
    with record_work() as launches:
        with record_work() as inner:  # which is equal to the other when it ends
            matmul_kernel[(2, 3)](a, b, c, 64, N=48, BLOCK=16)
        softmax_kernel[(1,)](torch.randn(1, 8), torch.zeros(1, 8), 8, 8, BLOCK=8)
    assert inner == launches[:1]
    launch, softmax = launches
    assert softmax.kernel == "softmax_kernel"
    assert (launch.kernel, launch.programs) == ("matmul_kernel", 6)
    assert launch.flops == 2 * 32 * 64 * 48
    assert launch.loaded == {"a_ptr": 3 * a.nbytes, "b_ptr": 2 * b.nbytes}
    assert launch.stored == {"c_ptr": c.nbytes}
    x, out = ints(8), zeros(13, 8)
    with record_work() as launches:
        integers_kernel[(3,)](x, x + 1, out, N=8)
    assert launches[0].loaded == {"x_ptr": 3 * x.nbytes, "y_ptr": 3 * x.nbytes}, "each reads all"


def _attention(**options):
    def run():
        q, k, v = (torch.randn(1, 2, 40, 16, requires_grad=True) for _ in range(3))
        return attention(q, k, v, **options), (q, k, v)

    return run


def _norm():
    x, residual = (torch.randn(7, 40, requires_grad=True) for _ in range(2))
    weight, bias = (torch.randn(40, requires_grad=True) for _ in range(2))
    y, total = add_layer_norm(x, residual, weight, bias)
    return y + total, (x, residual, weight, bias)


def _gelu():
    x, bias = torch.randn(9, 40, requires_grad=True), torch.randn(40, requires_grad=True)
    return gelu_tanh(x, bias), (x, bias)


def _swiglu():
    gate_up = torch.randn(9, 80, requires_grad=True)
    return swiglu_packed(gate_up), (gate_up,)


def _loss():
    logits = torch.randn(9, 300, requires_grad=True)
    targets = torch.randint(0, 290, (9,))
    targets[3] = -100
    options = {"label_smoothing": 0.1, "z_loss": 1e-3, "vocab_size": 290}
    return cross_entropy(logits, targets, **options), (logits,)


OURS = {
    "attention": _attention(),
    "two passes": _attention(deterministic=True),
    "window and dropout": _attention(window=9, dropout_p=0.2, dropout_seed=torch.tensor([7])),
    "norm": _norm,
    "gelu": _gelu,
    "swiglu": _swiglu,
    "loss": _loss,
}


@pytest.mark.parametrize("name", OURS)
def test_our_kernels_give_what_they_give_in_tritons_interpreter(name):
    results = []
    for together in (True, False):
        torch.manual_seed(0)
        with batched(together):
            out, given = OURS[name]()
            out.backward(torch.linspace(-1, 1, out.numel()).view(out.shape))
        results.append([out, *(x.grad for x in given)])
    for ours, tritons in zip(*results, strict=True):
        torch.testing.assert_close(ours, tritons, atol=2e-6, rtol=2e-6)
