"""What attention executes and moves, counted in the interpreter: a performance test without noise.

Useful work is that on the visible scores (the causal half, or the band): 4 * D FLOPs each in the
forward (two products), 10 * D in the backward (five).
"""

import pytest
import torch
from torch import Tensor

from kernels._attention.operators import attention_bwd
from kernels._attention.tiles import choose_tiles
from kernels._common.launch import INTERPRETED
from kernels.attention import attention, attention_qkvpacked
from kernels.documents import document_bounds
from tests.kernels.work_counts import Work, count_work

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="counts are taken in the interpreter")

WIDTH = 64
SIZE = 2  # bytes of float16


def visible(length: int, window: int | None = None) -> int:
    """How many scores a head has."""
    hidden = 0 if window is None else max(length - window, 0) * (length - window + 1) // 2
    return length * (length + 1) // 2 - hidden


def inputs(length: int) -> dict[str, Tensor]:
    return {name: torch.randn(1, length, 1, WIDTH).half() for name in ("q", "k", "v")}


def forward(length: int, window: int | None = None, documents: Tensor | None = None) -> Work:
    tensors = inputs(length)
    with count_work() as work:
        attention(**tensors, window=window, documents=documents)
    return work


def backward(
    length: int, *, deterministic: bool, window: int | None = None, documents: Tensor | None = None
) -> Work:
    """The work does not depend on the numbers: o and the log-sum-exp may be any."""
    q, k, v = inputs(length).values()
    lse = torch.zeros(1, 1, length)
    with count_work() as work:
        attention_bwd(
            q, q, k, v, q, lse, None, documents, 0.1, window, 0.0, False, deterministic, True, True
        )
    return work


@pytest.mark.parametrize(
    ("length", "bound"), [(256, 1.25), (512, 1.25), (1024, 1.13), (2048, 1.07)]
)
def test_forward_executes_little_more_than_the_useful_work(length, bound):
    assert forward(length).flops <= bound * 4 * WIDTH * visible(length)


def test_one_pass_backward_executes_five_products():
    work = backward(1024, deterministic=False)
    expected = ["attention_bwd_delta_kernel", "attention_bwd_dkv_kernel"]
    assert [launch.kernel for launch in work.launches] == expected
    assert work.flops <= 1.13 * 10 * WIDTH * visible(1024)


def test_two_pass_backward_executes_seven_products_in_two_launches():
    work = backward(1024, deterministic=True)
    expected = ["attention_bwd_dq_kernel", "attention_bwd_dkv_kernel"]
    assert [launch.kernel for launch in work.launches] == expected
    assert work.added == 0
    assert work.flops <= 1.13 * 14 * WIDTH * visible(1024)


def test_forward_moves_each_byte_as_often_as_the_tiles_say():
    """q once; k and v once per row tile that sees them; o and lse written once."""
    length = 1024
    tile = choose_tiles("sm_90", WIDTH, length, SIZE).fwd
    work = forward(length)
    assert len(work.launches) == 1
    row_tiles = length // tile.block_m
    keys = sum((i + 1) * tile.block_m for i in range(row_tiles))
    (launch,) = work.launches
    assert launch.programs == row_tiles
    assert launch.loaded["q_ptr"] == length * WIDTH * SIZE
    assert launch.loaded["k_ptr"] == launch.loaded["v_ptr"] == keys * WIDTH * SIZE
    assert launch.loaded.keys() == {"q_ptr", "k_ptr", "v_ptr"}
    assert launch.stored.total() == length * (WIDTH * SIZE + 4)


def test_one_pass_backward_adds_dq_once_per_tile_of_keys():
    length = 1024
    tile = choose_tiles("sm_90", WIDTH, length, SIZE).dkv
    work = backward(length, deterministic=False)
    rows = sum(length - n for n in range(0, length, tile.block_n))
    assert work.added == rows * WIDTH * 4
    main = work.of("dkv")
    kv_once = 2 * length * WIDTH * SIZE
    assert main.loaded.total() == kv_once + rows * (2 * WIDTH * SIZE + 2 * 4)
    assert main.stored.total() == kv_once


@pytest.mark.parametrize("window", [256, 100])
@pytest.mark.parametrize("part", ["forward", "one-pass", "two-pass"])
def test_windowed_work_is_linear_in_length(part, window):
    """Past the first window every row costs the same, and only whole tiles leave the band."""

    def flops(length: int) -> int:
        if part == "forward":
            return forward(length, window).flops
        return backward(length, deterministic=part == "two-pass", window=window).flops

    f384, f768, f1152 = (flops(length) for length in (384, 768, 1152))
    assert f1152 - f768 == f768 - f384
    products = {"forward": 2, "one-pass": 5, "two-pass": 7}[part]
    # At most a tile of 128 beyond the band on one side and a tile of 64 on the other.
    assert f1152 <= products * 2 * WIDTH * 1152 * (window + 128 + 64)


def test_windowed_work_grows_as_the_useful_work():
    ratio = forward(4096, 256).flops / forward(1024, 256).flops
    assert ratio == pytest.approx(visible(4096, 256) / visible(1024, 256), rel=0.01)


LENGTHS = [212, 96, 305, 187, 224]  # of five stories, together 1024 tokens


@pytest.mark.parametrize("part", ["forward", "one-pass", "two-pass"])
def test_work_on_documents_is_little_more_than_their_squares(part):
    begins = torch.tensor([0, *LENGTHS[:-1]]).cumsum(0)
    first = torch.zeros(1, 1024, dtype=torch.bool)
    first[0, begins] = True
    documents = document_bounds(first)
    if part == "forward":
        work = forward(1024, documents=documents)
    else:
        work = backward(1024, deterministic=part == "two-pass", documents=documents)
    products = {"forward": 2, "one-pass": 5, "two-pass": 7}[part]
    useful = sum(map(visible, LENGTHS))
    assert work.flops <= 1.35 * products * 2 * WIDTH * useful
    # Every tile is within one of its document's: none between documents is visited.
    squares = sum((n + 32) * (n + 33) // 2 for n in LENGTHS)
    assert work.flops <= products * 2 * WIDTH * squares


def test_packed_entry_launches_and_moves_no_more_than_the_separate_one():
    packed = torch.randn(1, 200, 3, 2, WIDTH).half().requires_grad_()
    q, k, v = (x.detach().clone().requires_grad_() for x in packed.unbind(2))
    with count_work() as separate:
        attention(q, k, v, deterministic=False).sum().backward()
    with count_work() as together:
        attention_qkvpacked(packed, deterministic=False).sum().backward()
    assert separate == together
