"""Spikes of the loss and skipped steps: noticed and counted; `Trainer` skips and rolls back.

A step's loss is a spike when it exceeds the mean of the last `WINDOW` losses by more than `sigma`
of their standard deviations. What follows is `--on-spike`:

    warn       a line on the terminal
    skip       the step does not reach the weights
    rollback   back to the last checkpoint, and on with the text after the spike (as Chowdhery et
               al. 2022, arXiv:2204.02311, section 5.1, did by hand)

A step whose loss or gradient is not finite never reaches the weights. Too many in a row end the
run.
"""

import math
import statistics
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from gpt2.common.distributed import say
from gpt2.config import Settings
from gpt2.runs.checkpoint import TrainerState, best_checkpoint, step_of
from gpt2.training.step import StepResult

WINDOW = 100
LEAST = 20  # losses to know before anything is called a spike


class Diverged(RuntimeError):
    """Too many steps were skipped in a row, or too often rolled back, or the end is not finite."""


def diverged_at_the_end(folder: Path) -> Diverged:
    """Build the error of a run whose last weights give no finite loss; it has no test nor samples.

    Names the best checkpoint in `folder`/checkpoints, where one has a finite validation loss.
    """
    best = best_checkpoint(folder / "checkpoints")
    kept = "no checkpoint has a finite one"
    if best is not None:
        kept = f"the best checkpoint, step {step_of(best):,}, is what --init-from {folder} takes"
    return Diverged(
        f"the run in {folder} has diverged: the validation loss after its last step is not finite, "
        f"so it is neither scored nor sampled; {kept}. Train anew with a lower --lr, or --dtype "
        "fp32"
    )


class SpikeGuard:
    """The recent losses of a run, and the limit that they set for the next."""

    def __init__(self, sigma: float, losses: Iterable[float]) -> None:
        self.sigma = sigma
        self.losses = deque(losses, maxlen=WINDOW)

    @property
    def limit(self) -> float:
        """The loss that the next step must not exceed; infinite while too little is known."""
        if not self.sigma or len(self.losses) < LEAST:
            return math.inf
        mean = statistics.fmean(self.losses)
        return mean + self.sigma * statistics.pstdev(self.losses, mean)


class StepGuard:
    """Judges each step by its loss, counts those that were skipped, and ends a hopeless run."""

    def __init__(self, settings: Settings, folder: Path, state: TrainerState | None = None) -> None:
        """Begin with no step, or where a checkpoint's `state` stands."""
        self._settings, self._folder = settings, folder
        self.spikes = SpikeGuard(settings.spike_sigma, state.recent_losses if state else ())
        self.skipped = state.skipped if state else 0
        self.skipped_in_a_row = state.skipped_in_a_row if state else 0
        self.rollbacks = state.rollbacks if state else 0

    @property
    def max_loss(self) -> float:
        """The loss above which the next step shall not reach the weights."""
        return math.inf if self._settings.on_spike == "warn" else self.spikes.limit

    def is_spike(self, result: StepResult, step: int) -> bool:
        """Tell whether the loss of a step is a spike, and say so on the terminal."""
        limit = self.spikes.limit
        if not limit < result.loss < math.inf:
            return False
        say(
            f"step {step}: loss {result.loss:.4f} is a spike, above {limit:.4f} "
            f"({self._settings.spike_sigma:g} standard deviations)"
        )
        return True

    def count(self, result: StepResult, step: int, *, spike: bool) -> None:
        """Count a step that was taken or skipped.

        Raises:
            Diverged: as many steps as --max-skipped were skipped in a row.
        """
        if not result.skipped:
            self.skipped_in_a_row = 0
            self.spikes.losses.append(result.loss)
            return
        self.skipped += 1
        self.skipped_in_a_row += 1
        what = f"loss {result.loss}, gradient norm {result.grad_norm}"
        say(f"step {step}: skipped, as it is {'a spike' if spike else 'not finite'} ({what})")
        if self.skipped_in_a_row >= self._settings.max_skipped:
            raise Diverged(
                f"{self.skipped_in_a_row} steps in a row had a loss or gradient that is not "
                f"finite, or a spike (last: {what}). No such step reached the weights, and the "
                f"checkpoints in {self._folder} are intact. Try a lower --lr, more --warmup-steps, "
                "or --dtype fp32."
            )

    def count_rollback(self) -> int:
        """Return the number of rollbacks with the one about to be made.

        Raises:
            Diverged: that is more than --max-skipped.
        """
        if self.rollbacks >= self._settings.max_skipped:
            raise Diverged(
                f"the loss spiked again after {self.rollbacks} rollbacks; the checkpoints in "
                f"{self._folder} are intact. Try a lower --lr, or --spike-sigma 0 to let it pass."
            )
        return self.rollbacks + 1
