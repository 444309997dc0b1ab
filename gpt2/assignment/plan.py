"""Which sizes to train, and on how many tokens, so that all is done within the time given.

The speed of training is measured, size by size, until one is too slow. The largest size is chosen
that sees at least one token for each parameter of its layers; two smaller ones are trained on the
same tokens beside it. Text is read four times at most: beyond that little is gained (Muennighoff et
al. 2023, arXiv:2305.16264).
"""

import dataclasses
import io
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from gpt2.common.devices import choose_device
from gpt2.compare_sizes.plan import plan_runs
from gpt2.config import Settings, TrainConfig, settle
from gpt2.data.prepare import Prepared
from gpt2.training.run_training import Plan, build

LADDER = ("1x64", "2x96", "3x128", "4x192", "5x256", "6x384", "8x512", "12x768", "16x1024")
_COUNT = 3  # sizes trained
_EPOCHS = 4
_STEPS = 20  # at least
_TRIED = 6  # steps of each size; the first, which allocates, is not counted
# Measuring the validation loss takes up to as many tokens again as training, forward only.
_VALIDATED = 1.33
_SCORED = 1 / 3  # a token that is scored, over one that is trained on
_REST, _REST_SECONDS = 0.25, 20.0  # for decoding, report, picture; to start a process


@dataclass(frozen=True)
class Shape:
    """What is trained: sizes, smallest first, of which the last is the model, and their tokens.

    Attributes:
        sizes: as `--sizes` of gpt2.compare_sizes takes them.
        tokens: of each size.
        epochs: passes over the training text that these are.
        speeds: tokens per second that each size was trained at when it was tried.
        minutes: expected for training all of them, validation included.
    """

    sizes: list[str]
    tokens: int
    epochs: float
    speeds: list[float]
    minutes: float

    def __str__(self) -> str:
        tried = ", ".join(
            f"{name} {speed:,.0f}" for name, speed in zip(self.sizes, self.speeds, strict=True)
        )
        return (
            f"plan: train {' '.join(self.sizes)} (layers x width) on {self.tokens:,} tokens each, "
            f"{self.epochs:.2f} times the training text; the last is the model. Tokens/s, tried: "
            f"{tried}; about {self.minutes:.1f} minutes of training"
        )


def plan_shape(asked: TrainConfig, prepared: Prepared, *, seconds: float) -> Shape:
    """Try sizes, smallest first, and choose what fits into the time left.

    Args:
        asked: settings that all sizes share.
        prepared: the text.
        seconds: left for everything from here on.
    """
    device, _ = choose_device(asked.device)
    base = settle(asked, "demo" if device.type == "cpu" else "mini")
    runs = plan_runs(base, presets=(), shapes=LADDER, tokens=1 << 40, out=Path(asked.out or ""))
    text, scored = len(prepared.splits["train"]), len(prepared.splits["test"])
    per_step = base.sequences_per_step * base.seq_len
    start, paces = time.perf_counter(), list[float]()

    def reachable(count: int) -> int:
        """Tokens that the last sizes of so many can be trained on."""
        pace = sum(paces[max(0, count - _COUNT) : count])
        left = seconds - (time.perf_counter() - start)
        left = left * (1 - _REST) - _COUNT * _REST_SECONDS - scored * _SCORED * pace
        most = min(int(left / (pace * _VALIDATED)), _EPOCHS * text)
        return max(most // per_step, _STEPS) * per_step

    chosen = _COUNT
    for count, run in enumerate(runs.values(), 1):
        paces.append(_pace(run, prepared))
        wanted = 12 * run.n_layer * run.n_embd**2
        if count > _COUNT and reachable(count) < wanted:
            break
        chosen = max(chosen, count)
    first = chosen - _COUNT
    tokens, own = reachable(chosen), paces[first:chosen]
    expected = sum(own) * (tokens * _VALIDATED + scored * _SCORED) + _COUNT * _REST_SECONDS
    return Shape(
        sizes=list(LADDER[first:chosen]),
        tokens=tokens,
        epochs=tokens / text,
        speeds=[1 / pace for pace in own],
        minutes=expected / 60,
    )


def _pace(settings: Settings, prepared: Prepared) -> float:
    """Measured seconds of training per token, by single micro-batches."""
    settings = dataclasses.replace(settings, grad_accum=1)
    with redirect_stdout(io.StringIO()):  # it describes a run that will not be
        trainer = build(Plan(Path(settings.out or ""), settings, resumed=False), prepared)
        times = []
        for _ in range(_TRIED):
            start = time.perf_counter()
            trainer.next_step()
            times.append(time.perf_counter() - start)
    return min(times[1:]) / trainer.tokens_per_step
