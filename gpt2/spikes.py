"""Loss spikes: noticed against the run's own recent losses, and dealt with as the user asked.

A step's loss is a spike when it exceeds the mean of the last `WINDOW` by more than `sigma` of their
standard deviations. What follows is `--on-spike`:

    warn       a line on the terminal
    skip       the step does not reach the weights
    rollback   back to the last checkpoint, and on with the text after the spike (as Chowdhery et
               al. 2022, arXiv:2204.02311, section 5.1, did by hand)
"""

import math
import statistics
from collections import deque
from collections.abc import Iterable

WINDOW = 100
LEAST = 20  # losses to know before anything is called a spike


class SpikeGuard:
    """The recent losses of a run and the limit that they set. Part of a checkpoint, by `losses`."""

    def __init__(self, sigma: float, losses: Iterable[float] = ()) -> None:
        self.sigma = sigma
        self.losses = deque(losses, maxlen=WINDOW)

    @property
    def limit(self) -> float:
        """The loss that the next step must not exceed; infinite while too little is known."""
        if not self.sigma or len(self.losses) < LEAST:
            return math.inf
        mean = statistics.fmean(self.losses)
        return mean + self.sigma * statistics.pstdev(self.losses, mean)

    def add(self, loss: float) -> None:
        """Remember the loss of a step that was taken."""
        self.losses.append(loss)
