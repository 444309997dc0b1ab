"""Plots of a result file, as PNG and SVG.

    python -m bench.plot bench/results/h200/2026-12-01-1234abc.json

training_speed    tokens per second against model size, with the limit of matrix products
training_memory   peak memory of a training step against model size
ladder            speed of a training step, one optimisation added at a time
attention         TFLOP/s against length, with the limit
kernels           GB/s of the memory-bound kernels, with the rate of a copy
loss_memory       memory of output head and loss against the number of tokens

A plot whose rows are missing is left out, and the command says why.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from tyro.conf import Positional

from bench.harness.results import read_results
from bench.plot.kernels import attention, kernels, loss_memory
from bench.plot.style import Found, LeftOut
from bench.plot.training import ladder, training_memory, training_speed
from gpt2.common.files import atomic_write

PLOTS: dict[str, Callable[[Found], Figure]] = {
    plot.__name__: plot
    for plot in (training_speed, training_memory, ladder, attention, kernels, loss_memory)
}


def draw(results: Found, folder: Path, source: str) -> dict[str, str | None]:
    """Draw every plot that `results` has rows for, as <plot>.png and <plot>.svg in `folder`.

    The pictures carry `source`, the name of the result file, as metadata. Returns for each plot the
    reason that it was left out, or None.
    """
    folder.mkdir(parents=True, exist_ok=True)
    left_out: dict[str, str | None] = {}
    for name, plot in PLOTS.items():
        try:
            figure = plot(results)
        except LeftOut as reason:
            left_out[name] = str(reason)
            continue
        with atomic_write(folder / f"{name}.png") as file:
            figure.savefig(file, format="png", dpi=150, metadata={"Source": source})
        with atomic_write(folder / f"{name}.svg") as file:
            figure.savefig(file, format="svg", metadata={"Source": source, "Date": None})
        left_out[name] = None
    return left_out


@dataclass(frozen=True)
class Arguments:
    """Draw the plots of a result file, as PNG and SVG."""

    results: Positional[Path]
    """A result file of the benchmarks."""
    out: Path | None = None
    """Folder of the pictures. None: that of the result file."""


def main(arguments: Arguments) -> None:
    """Draw the plots and say which were left out.

    Raises:
        ValueError: not a result file, or nothing in it to draw.
    """
    results = read_results(arguments.results)
    folder = arguments.out or arguments.results.parent
    left_out = draw(results, folder, arguments.results.name)
    for name, reason in left_out.items():
        print(f"{folder / name}.png" if reason is None else f"{name} left out: {reason}")
    if all(left_out.values()):
        raise ValueError(f"{arguments.results} has no rows to draw")


if __name__ == "__main__":
    from gpt2.common.cli import run_tool

    run_tool(main, Arguments)
