"""The state of every random number generator that training may draw from, as named tensors."""

import random
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpt2.common.distributed import all_gather, world


def random_states() -> dict[str, Tensor]:
    """The random state of every process; names of rank r > 0 begin with "r/"."""
    return {
        f"{rank}/{name}" if rank else name: tensor
        for rank, state in enumerate(all_gather(_random_state()))
        for name, tensor in state.items()
    }


def set_random_states(states: Mapping[str, Tensor], *, seed: int) -> None:
    """Restore this process's own state; a rank that has none begins with a seed of its own."""
    rank = world().rank
    own = _of_process(states, str(rank) if rank else "")
    if not own:
        torch.manual_seed(seed + rank)
        return
    torch.set_rng_state(own["torch.cpu"])
    np.random.set_state(_numpy_state(own))  # noqa: NPY002 (the global one)
    random.setstate(_python_state(own))
    for name, value in own.items():
        if name.startswith("torch.cuda.") and torch.cuda.is_available():
            torch.cuda.set_rng_state(value, int(name.rpartition(".")[2]))
    if "torch.mps" in own and torch.backends.mps.is_available():
        torch.mps.set_rng_state(own["torch.mps"])


def check_random_states(states: Mapping[str, Tensor]) -> None:
    """Raise ValueError for tensors that are not what `random_states` gives."""
    for process in {name.rpartition("/")[0] for name in states}:
        own = _of_process(states, process)
        try:
            torch.Generator().set_state(own["torch.cpu"])
            np.random.RandomState().set_state(_numpy_state(own))
            random.Random().setstate(_python_state(own))
        except (LookupError, TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise ValueError(f"{error!r:.300}") from error


def _of_process(states: Mapping[str, Tensor], process: str) -> dict[str, Tensor]:
    prefix = process and f"{process}/"
    own = {n.removeprefix(prefix): tensor for n, tensor in states.items() if n.startswith(prefix)}
    return {name: tensor for name, tensor in own.items() if "/" not in name}


def _random_state() -> dict[str, Tensor]:
    """The state of this process."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    assert kind == "MT19937"
    _, words, gauss_next = random.getstate()
    state = {
        "torch.cpu": torch.get_rng_state(),
        "numpy.keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "numpy.position": torch.tensor([position, has_gauss]),
        "numpy.gauss": torch.tensor([gauss], dtype=torch.float64),
        "python.words": torch.tensor(words),
        "python.gauss": torch.tensor(
            [float("nan") if gauss_next is None else gauss_next], dtype=torch.float64
        ),
    }
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        state[f"torch.cuda.{i}"] = torch.cuda.get_rng_state(i)
    if torch.backends.mps.is_available():
        state["torch.mps"] = torch.mps.get_rng_state()
    return state


def _numpy_state(state: Mapping[str, Tensor]) -> tuple[str, NDArray[np.uint32], int, int, float]:
    position, has_gauss = state["numpy.position"].tolist()
    keys = state["numpy.keys"].numpy().astype(np.uint32)
    if not 0 <= position <= len(keys):  # NumPy would read there all the same
        raise ValueError(f"NumPy's generator has no position {position}")
    return "MT19937", keys, position, has_gauss, float(state["numpy.gauss"])


def _python_state(state: Mapping[str, Tensor]) -> tuple[int, tuple[int, ...], float | None]:
    gauss = float(state["python.gauss"])
    return 3, tuple(state["python.words"].tolist()), None if gauss != gauss else gauss
