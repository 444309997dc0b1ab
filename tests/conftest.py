"""Shared set-up of all tests: Triton's interpreter where there is no GPU, real data, markers."""

import os
from pathlib import Path

import pytest

# Threads that wait for work sleep: spinning, they take the cores from other processes. OpenMP reads
# it when torch is imported, here and in child processes.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

if not torch.cuda.is_available():  # must precede the first import of triton
    os.environ.setdefault("TRITON_INTERPRET", "1")

# One thread: sums in the same order on every machine, and no fight between processes over cores.
torch.set_num_threads(1)

DATA_VARIABLE = "GPT2_TEST_DATA"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    no_cuda = pytest.mark.skip(reason="needs a CUDA device")
    no_slow = pytest.mark.skip(reason="slow: run with --slow")
    for item in items:
        if "cuda" in item.keywords and not torch.cuda.is_available():
            item.add_marker(no_cuda)
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(no_slow)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets named by the environment variable GPT2_TEST_DATA."""
    folder = os.environ.get(DATA_VARIABLE)
    if not folder:
        pytest.skip(f"real data: set {DATA_VARIABLE} to a folder with wikitext-2/ and others")
    return Path(folder).resolve()
