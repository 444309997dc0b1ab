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

    def __getattr__(self, counter: str) -> int:
        """The sum of a counter over all launches: flops, loaded, stored or added."""
        return sum(getattr(launch, counter) for launch in self.launches)

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
    builder = interpreter_builder

    def counted(name: str, counter: str, pointers: int, mask: int) -> Any:
        """Wrap a function of the builder: add the bytes of its unmasked lanes to a counter."""
        original = getattr(builder, name)

        def run(*args: Any, **kwargs: Any) -> Any:
            ptrs, launch = args[pointers], work.launches[-1]
            lanes = int(np.broadcast_to(args[mask].data, ptrs.data.shape).sum())
            size = lanes * (ptrs.get_element_ty().primitive_bitwidth // 8)
            setattr(launch, counter, getattr(launch, counter) + size)
            for tensor, (start, end) in spans.items():
                if counter == "loaded" and start <= ptrs.data.flat[0] < end:
                    launch.read[tensor] += size
            return original(*args, **kwargs)

        return run

    multiply, execute = builder.create_dot, GridExecutor.__call__

    def dot(a: Any, b: Any, *args: Any, **kwargs: Any) -> Any:
        work.launches[-1].flops += 2 * a.data.size * b.data.shape[-1]
        return multiply(a, b, *args, **kwargs)

    def launch(executor: GridExecutor, *args: Any, **kwargs: Any) -> Any:
        grid = executor.grid if isinstance(executor.grid, tuple) else ()
        work.launches.append(Launch(executor.fn.__name__, int(np.prod(grid))))
        return execute(executor, *args, **kwargs)

    wrappers = {
        "create_masked_load": counted("create_masked_load", "loaded", 0, 1),
        "create_masked_store": counted("create_masked_store", "stored", 0, 2),
        "create_atomic_rmw": counted("create_atomic_rmw", "added", 1, 3),
        "create_dot": dot,
    }
    with ExitStack() as stack:
        for name, wrapper in wrappers.items():
            stack.enter_context(patch.object(builder, name, wrapper))
        stack.enter_context(patch.object(GridExecutor, "__call__", launch))
        yield work
