"""Fixtures of the kernel tests."""

from collections.abc import Iterator

import pytest
import torch

from kernels._common.launch import INTERPRETED


@pytest.fixture(autouse=True)
def _tiles_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter's own tiles would leave little of the tiling to test."""
    if INTERPRETED:
        monkeypatch.setattr("kernels._common.launch._architecture", lambda _: "sm_90")


@pytest.fixture
def nan_in_empty() -> Iterator[None]:
    """Fill what torch.empty returns with NaN: an element that no kernel writes shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=[False, True], ids=["one-pass", "two-pass"])
def deterministic(request: pytest.FixtureRequest) -> bool:
    """Which backward of attention."""
    return request.param
