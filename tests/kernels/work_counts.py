"""Count what a kernel does: bytes moved and dot FLOPs per launch, in the interpreter.

A performance test without noise and without a GPU: the counts depend on the code and the tile sizes
alone. Bytes are those of unmasked lanes, so they are the traffic between the program and memory
before any cache.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from kernels.interpreter import Launch, record_work


@dataclass
class Work:
    """All launches of a counted block, in order."""

    launches: list[Launch]

    @property
    def flops(self) -> int:
        return sum(launch.flops for launch in self.launches)

    @property
    def loaded(self) -> int:
        return sum(launch.loaded.total() for launch in self.launches)

    @property
    def stored(self) -> int:
        return sum(launch.stored.total() for launch in self.launches)

    @property
    def added(self) -> int:
        """Bytes of atomic updates."""
        return sum(launch.updated.total() for launch in self.launches)

    def of(self, kernel: str) -> Launch:
        """The only launch of the kernel whose name contains `kernel`."""
        (launch,) = [launch for launch in self.launches if kernel in launch.kernel]
        return launch


@contextmanager
def count_work() -> Iterator[Work]:
    """Count every interpreted launch inside the block."""
    with record_work() as launches:
        yield Work(launches)
