"""Seconds of a training step on a CPU, our kernels interpreted by ours and by Triton's interpreter.

    python -m bench.interpreter --out bench/results/<device>/interpreter/<date>-<commit>.json

The demo model on 16 x 128 random tokens in float32; the two interpreters take turns in one process.
Memory is the rise of the resident memory of a process of its own, by our interpreter. The file
holds every turn; the table that is printed and stands in README.md holds the medians.
"""

import os
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.harness import markdown
from bench.harness.resident_memory import resident_memory
from bench.harness.results import commit, device_name, versions
from bench.harness.training_steps import Problem, Recipe, Step
from gpt2.common.files import write_json
from gpt2.config import PRESETS

CPU = torch.device("cpu")
RECIPES = (
    Recipe("--attn triton", "triton"),
    Recipe("--attn triton --kernels triton", "triton", "triton", "triton", "triton"),
)
ROUNDS = 1  # a step by Triton's takes more than a minute
TOKENS = (16, 128)


@dataclass(frozen=True)
class Arguments:
    """Measure a training step on interpreted kernels, by our interpreter and by Triton's."""

    out: Path | None = None
    """Write every turn to this .json file."""


def main(arguments: Arguments) -> None:
    os.environ["TRITON_INTERPRET"] = "1"  # heeded when Triton is imported
    from kernels.interpreter import batched

    problem = Problem("demo", PRESETS["demo"], *TOKENS, CPU, torch.float32)
    naive = resident_memory(problem, Recipe("naive", "naive"))
    rows = []
    for recipe in RECIPES:
        Step(Problem("demo", PRESETS["demo"], 1, 8, CPU, torch.float32), recipe).run()
        step = Step(problem, recipe)
        seconds: dict[str, list[float]] = {"triton": [], "ours": []}
        for _ in range(ROUNDS):
            for interpreter, turns in seconds.items():
                with batched(interpreter == "ours"):
                    start = time.perf_counter()
                    step.run()
                    turns.append(time.perf_counter() - start)
        memory = resident_memory(problem, recipe)
        rows.append({"options": recipe.name, "seconds": seconds, "memory_bytes": memory})
    about = {"device": device_name(CPU), "commit": commit(), "versions": versions()}
    results = about | {"naive_memory_bytes": naive, "rows": rows}
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.out, results)
    print(table(results))


def table(results: Mapping[str, Any]) -> str:
    """Markdown: a line for each choice of kernels."""
    head = ["demo, 16 x 128, fp32", "Triton's", "ours", "faster", "memory, beside `--attn naive`"]
    lines = []
    for row in results["rows"]:
        triton, ours = (statistics.median(row["seconds"][name]) for name in ("triton", "ours"))
        more = (row["memory_bytes"] - results["naive_memory_bytes"]) / 2**30
        cells = [f"{triton:.1f} s", f"{ours:.2f} s", f"x {triton / ours:.1f}", f"{more:+.2f} GiB"]
        lines.append([f"`{row['options']}`", *cells])
    return "\n".join(markdown.table(head, lines))


if __name__ == "__main__":
    from gpt2.common.cli import run_tool

    run_tool(main, Arguments)
