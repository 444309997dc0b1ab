"""The error budget: how much a kernel that is right may differ, and what shows that one is not."""

import pytest
import torch
from torch import Tensor

from kernels.testing import Referee, compare


def test_an_error_that_pytorch_avoids_by_luck_is_allowed():
    """A sum of whole numbers is exact in any order; of most other numbers it is not."""

    def in_sevenths(x: Tensor) -> Tensor:
        return 7 * (x / 7).sum(0, keepdim=True)

    inputs = {"x": torch.tensor([1e6 + 1, 2e6 - 1, 7, 1e6 - 8, -4e6])}
    found = compare(in_sevenths, lambda x: x.sum(0, keepdim=True), inputs)
    assert found["out"].error > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_wrong_element_among_many_is_found(dtype):
    def wrong(x: Tensor) -> Tensor:
        y = 1.1 * x
        y[7] = 0
        return y

    inputs = {"x": torch.randn(300_000).to(dtype).clamp(min=0.5)}
    assert not Referee(lambda x: 1.1 * x, inputs).judge(wrong)["out"].within


def test_less_precision_everywhere_is_found():
    """No element is as wrong as the largest may be."""
    inputs = {"x": torch.logspace(-3, 0, 10_000)}
    shifted = Referee(lambda x: 1.1 * x, inputs).judge(lambda x: 1.1 * x + 2 * 2**-24)["out"]
    assert not shifted.within
