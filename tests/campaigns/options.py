"""The options that all campaigns share."""

import shlex
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import tyro

Name = Literal["budget", "compilers", "faults", "fuzz", "instructions", "soak", "stress", "tables"]


@dataclass
class Budget:
    """How often, or for how long, one case is tried."""

    tries: int | None
    seconds: float | None
    _began: float = field(default_factory=time.monotonic, compare=False)

    def left(self, tried: int) -> bool:
        """Return whether to try once more after so many tries; the first is always made."""
        if tried == 0:
            return True
        if self.tries is not None and tried >= self.tries:
            return False
        return self.seconds is None or time.monotonic() - self._began < self.seconds


@dataclass(frozen=True)
class Options:
    """Disturb training (faults), feed it hostile files (fuzz), run it for long (soak), give the
    kernels random arguments (stress) or seeds (budget), or compile them by every supported Triton,
    to be tested (compilers) or counted (instructions). `tables` writes the committed results into
    the READMEs.

    Without options a campaign does what pytest does, in a minute or so. It ends with status 1 when
    anything was found.
    """

    campaign: tyro.conf.Positional[Name]
    long: bool = False
    """Search for long: faults an hour or so, fuzz and stress ten minutes, soak 20,000 steps, 1,000
    seeds, all
    compilers an hour."""
    steps: int | None = None
    """Attempts of each fault, files for each reader, cases of each operator, or training steps."""
    seconds: float | None = None
    """End after about this time instead, which the cases share; not for the soak."""
    only: str = ""
    """Only the cases whose name contains this."""
    peers: str = ""
    """For instructions: a folder with others' kernels, the package liger_kernel and Triton's
    tutorials 05-layer-norm.py and 06-fused-attention.py."""
    seed: int = 0
    """Chooses the moments, the damage, the examples."""
    out: str | None = None
    """Write the result here as JSON."""

    def command(self) -> str:
        """Return the command line that repeats the campaign."""
        words = ["python -m tests.campaigns", self.campaign, *["--long"] * self.long]
        for name in ("steps", "seconds", "only", "peers", "seed"):
            value = "FOLDER" if name == "peers" and self.peers else getattr(self, name)
            if value:
                words.append(f"--{name} {shlex.quote(str(value))}")
        return " ".join(words)

    def chosen(self, names: Iterable[str]) -> list[str]:
        """Return the names that contain --only; ValueError if there is none."""
        found = [name for name in names if self.only in name]
        if not found:
            raise ValueError(f"no case contains {self.only!r}: choose from {', '.join(names)}")
        return found

    def budget(self, short: int, long: int | None, *, shares: int, seconds: float = 0) -> Budget:
        """Return the budget of one case, counted from now.

        It is `short` or `long` tries; the long form may end after `seconds` instead, for which
        `long` is None. That time, and the one of --seconds, is shared by `shares` cases.
        """
        if self.steps is not None or self.seconds is not None:
            tries, time_ = self.steps, self.seconds
        elif self.long:
            tries, time_ = long, None if long is not None else seconds
        else:
            tries, time_ = short, None
        return Budget(tries, None if time_ is None else time_ / shares)
