"""Count what a kernel does: bytes moved and dot FLOPs per launch, in Triton's interpreter.

A performance test without noise and without a GPU: the counts depend on the code and the tile sizes
alone. Bytes are those of unmasked lanes, so they are the traffic between the program and memory
before any cache.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np
from torch import Tensor
from triton.runtime.interpreter import GridExecutor, interpreter_builder


@dataclass
class Launch:
    """The work of one kernel launch."""

    kernel: str
    programs: int = 0
    flops: int = 0
    loaded: int = 0
    stored: int = 0
    added: int = 0
    """Bytes of atomic updates."""
    read: Counter[str] = field(default_factory=Counter)
    """Bytes loaded from each of the tensors that `count_work` was told to watch."""


@dataclass
class Work:
    """All launches of a counted block, in order."""

    launches: list[Launch] = field(default_factory=list)

    @property
    def flops(self) -> int:
        return sum(launch.flops for launch in self.launches)

    @property
    def loaded(self) -> int:
        return sum(launch.loaded for launch in self.launches)

    @property
    def stored(self) -> int:
        return sum(launch.stored for launch in self.launches)

    @property
    def added(self) -> int:
        return sum(launch.added for launch in self.launches)

    def of(self, kernel: str) -> Launch:
        """The only launch of the kernel whose name contains `kernel`."""
        (launch,) = [launch for launch in self.launches if kernel in launch.kernel]
        return launch


@contextmanager
def count_work(**watched: Tensor) -> Iterator[Work]:
    """Count every interpreted launch inside the block.

    Args:
        watched: name -> tensor whose loads are to be told apart. Tensors that share a storage
            cannot be.
    """
    work = Work()
    spans = {
        name: (storage.data_ptr(), storage.data_ptr() + storage.nbytes())
        for name, storage in ((name, t.untyped_storage()) for name, t in watched.items())
    }
    originals = {
        name: getattr(interpreter_builder, name)
        for name in ("create_masked_load", "create_masked_store", "create_dot", "create_atomic_rmw")
    }

    def load(ptrs: Any, mask: Any, *args: Any, **kwargs: Any) -> Any:
        lanes = np.broadcast_to(mask.data, ptrs.data.shape)
        size = ptrs.get_element_ty().primitive_bitwidth // 8
        launch = work.launches[-1]
        launch.loaded += int(lanes.sum()) * size
        for name, (start, end) in spans.items():
            if start <= ptrs.data.flat[0] < end:
                launch.read[name] += int(lanes.sum()) * size
        return originals["create_masked_load"](ptrs, mask, *args, **kwargs)

    def store(ptrs: Any, value: Any, mask: Any, *args: Any, **kwargs: Any) -> Any:
        lanes = np.broadcast_to(mask.data, ptrs.data.shape)
        size = ptrs.get_element_ty().primitive_bitwidth // 8
        work.launches[-1].stored += int(lanes.sum()) * size
        return originals["create_masked_store"](ptrs, value, mask, *args, **kwargs)

    def dot(a: Any, b: Any, *args: Any, **kwargs: Any) -> Any:
        work.launches[-1].flops += 2 * a.data.size * b.data.shape[-1]
        return originals["create_dot"](a, b, *args, **kwargs)

    def atomic(op: Any, ptr: Any, value: Any, mask: Any, *args: Any, **kwargs: Any) -> Any:
        lanes = np.broadcast_to(mask.data, ptr.data.shape)
        size = ptr.get_element_ty().primitive_bitwidth // 8
        work.launches[-1].added += int(lanes.sum()) * size
        return originals["create_atomic_rmw"](op, ptr, value, mask, *args, **kwargs)

    run = GridExecutor.__call__

    def launch(executor: GridExecutor, *args: Any, **kwargs: Any) -> Any:
        grid = executor.grid if isinstance(executor.grid, tuple) else ()
        work.launches.append(Launch(executor.fn.__name__, int(np.prod(grid))))
        return run(executor, *args, **kwargs)

    with ExitStack() as stack:
        counted = {
            "create_masked_load": load,
            "create_masked_store": store,
            "create_dot": dot,
            "create_atomic_rmw": atomic,
        }
        for name, wrapper in counted.items():
            stack.enter_context(patch.object(interpreter_builder, name, wrapper))
        stack.enter_context(patch.object(GridExecutor, "__call__", launch))
        yield work
