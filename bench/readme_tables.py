"""Tables and plots of the newest result file of each device, in README.md and bench/README.md.

    python -m bench.readme_tables --write

fills the space between `<!-- bench:TABLE -->` and `<!-- /bench -->`, and draws the plots of each
device beside its result files. TABLE is one of

    training        tokens per second and peak memory by model and variant
    ladder          speed of a training step, one optimisation added at a time
    largest_batch   the largest batch that fits, and its speed
    attention       useful TFLOP/s by length
    kernels         useful GB/s of the memory-bound kernels, and the share of a copy's rate
    losses          time and peak memory of output head and loss
    generate        tokens per second of decoding
    tokenizer       megabytes per second
    accounting      bytes moved and memory held by a step, computed: no result file needed
    expected        minutes, loss and perplexity of whole runs, and the least time on GPUs

A cell is empty where nothing was measured.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import expected
from bench.estimate import accounting
from bench.harness import markdown
from bench.harness.results import FOLDER, ROOT, ResultRow, in_order, newest, read_results, timed
from bench.plot.__main__ import draw
from bench.plot.style import label
from gpt2.common.files import atomic_write

Found = Mapping[str, Any]
READMES = (ROOT / "README.md", ROOT / "bench/README.md")
NO_RESULTS = "No results yet."
_BLOCK = re.compile(r"(<!-- bench:(\w+) -->\n)(.*?)(<!-- /bench -->)", re.DOTALL)


@dataclass(frozen=True)
class Arguments:
    """Generate tables and plots from the newest result file of each device."""

    write: bool = False
    """Write texts and plots. Otherwise the texts are printed as they would be."""
    texts: tuple[Path, ...] = READMES
    """The Markdown files with the markers."""
    results: Path = FOLDER
    """The folder with a folder of result files for each device."""


def training(results: Found) -> list[str]:
    """Rows are variants, columns problems; a cell is tokens/s and peak memory."""
    rows = [
        row for row in timed(results, "training")
        if "compile" in row["case"] and "B" in row["case"]
    ]  # fmt: skip

    def problem(row: ResultRow) -> str:
        case = row["case"]
        return f"{case['model']}, {case['B']} x {case['T']}, {_brief(case['dtype'])}"

    def variant(row: ResultRow) -> str:
        return _variant(row) + (", compiled" if row["case"]["compile"] else "")

    return _pivot("tokens/s, peak memory", rows, variant, problem, _rate_and_memory)


def ladder(results: Found) -> list[str]:
    """A row for each rung that was measured."""
    rows = [row for row in timed(results, "training") if row["case"].get("ladder")]
    lines, previous = [], None
    for row in rows:
        rate = row["metrics"]["tokens_per_s"]
        gain = "" if previous is None else f"x {rate / previous:.2f}"
        lines.append([row["variant"], f"{rate:,.0f}", gain, _memory(row)])
        previous = rate
    if not rows:
        return []
    case = rows[0]["case"]
    title = f"{case['model']}, {case['B']} x {case['T']}"
    head = [title, "tokens/s", "gain", "peak memory"]
    if not any(line[-1] for line in lines):  # not measured, as on a CPU
        head, lines = head[:-1], [line[:-1] for line in lines]
    return markdown.table(head, lines) if lines else []


def largest_batch(results: Found) -> list[str]:
    """Rows are variants, columns models; a cell is the batch and tokens per second."""
    return _pivot(
        "largest batch, tokens/s",
        [row for row in timed(results, "training") if row["case"].get("largest_batch")],
        _variant,
        lambda row: f"{row['case']['model']}, T = {row['case']['T']}",
        lambda rows: "{largest_batch:.0f}, {tokens_per_s:,.0f}".format_map(rows[0]["metrics"]),
    )


def attention(results: Found) -> list[str]:
    """Rows are variants, columns lengths; a cell is forward / backward."""
    rows = [
        row for row in timed(results, "attention")
        if row["case"]["packed"] and row["case"]["window"] is None and row["case"]["pass"] != "both"
    ]  # fmt: skip

    def cell(chosen: Sequence[ResultRow]) -> str:
        rates = {row["case"]["pass"]: f"{row['metrics']['tflops']:.3g}" for row in chosen}
        return " / ".join(rates.get(which, "") for which in ("forward", "backward"))

    return _pivot(
        "TFLOP/s, forward / backward",
        sorted(rows, key=lambda row: (row["case"]["D"], row["case"]["T"])),
        _variant,
        lambda row: f"T = {row['case']['T']}, D = {row['case']['D']}",
        cell,
    )


def kernels(results: Found) -> list[str]:
    """Rows are operators, columns variants; a cell is GB/s and the share of a copy's rate."""
    rows = [row for row in timed(results, "norms", "mlp", "losses") if "gbps" in row["metrics"]]

    def operator(row: ResultRow) -> str:
        case = row["case"]
        width = case.get("C") or case.get("F") or case["V"]
        return f"{case['op']} {case['pass']}, {case['N']} x {width}"

    def cell(chosen: Sequence[ResultRow]) -> str:
        rate = chosen[0]["metrics"]["gbps"]
        return f"{rate:,.0f} ({rate / results['limits']['copy_gbps']:.0%})"

    return _pivot("GB/s (of a copy)", rows, operator, _variant, cell)


def losses(results: Found) -> list[str]:
    """Rows are variants, columns numbers of tokens; a cell is milliseconds and peak memory."""
    rows = [row for row in timed(results, "losses") if row["case"]["op"] == "linear_cross_entropy"]

    def cell(chosen: Sequence[ResultRow]) -> str:
        milliseconds = f"{1e3 * chosen[0]['seconds']['median']:.3g} ms"
        return ", ".join(filter(None, (milliseconds, _memory(chosen[0]))))

    def size(row: ResultRow) -> str:
        return f"{row['case']['N']} x {row['case']['V']}"

    return _pivot("head and loss, with gradients", rows, _variant, size, cell)


def generate(results: Found) -> list[str]:
    """Rows are contexts, columns variants; a cell is tokens per second."""

    def problem(row: ResultRow) -> str:
        case = row["case"]
        return f"{case['model']}, {case['B']} x context {case['context']}, {_brief(case['dtype'])}"

    return _pivot("tokens/s", timed(results, "generate"), problem, _variant, _rate)


def tokenizer(results: Found) -> list[str]:
    """Rows are tasks, columns variants; a cell is megabytes of text per second."""
    return _pivot(
        "MB/s",
        timed(results, "tokenizer"),
        lambda row: ", ".join(str(value) for value in row["case"].values()) + " cores",
        _variant,
        lambda rows: f"{rows[0]['metrics']['mb_per_s']:.3g}",
    )


TABLES: dict[str, Callable[[Found], list[str]]] = {
    table.__name__: table
    for table in (
        training, ladder, largest_batch, attention, kernels, losses, generate, tokenizer,
    )
}  # fmt: skip


# Tables that do not come from the result files of pytest, each with the command that makes it.
OTHERS: dict[str, tuple[str, Callable[[], list[str]]]] = {
    "accounting": ("python -m bench.estimate.accounting", accounting.table),
    "expected": ("python -m bench.expected", expected.tables),
}


def render(text: str, folder: Path) -> str:
    """Return `text` with its tables generated from the result files under `folder`.

    Raises:
        ValueError: a marker that names no table.
    """
    files = newest_of_each_device(folder)

    def block(match: re.Match[str]) -> str:
        name = match[2]
        if name in OTHERS:
            command, table = OTHERS[name]
            return "\n".join([match[1].rstrip(), f"`{command}`:", "", *table(), match[4]])
        if name not in TABLES:
            known = ", ".join([*TABLES, *OTHERS])
            raise ValueError(f"<!-- bench:{name} -->: choose one of {known}")
        parts = [part for file in files if (part := _of_device(name, file))]
        content = "\n\n".join(parts) or NO_RESULTS
        return f"{match[1]}{content}\n{match[4]}"

    return _BLOCK.sub(block, text)


def newest_of_each_device(folder: Path) -> list[Path]:
    """The newest result file of each device, GPUs first."""
    folders = sorted(path for path in folder.glob("*") if path.is_dir())
    folders.sort(key=lambda path: path.name.startswith("cpu"))
    return [file for path in folders if (file := newest(path)) is not None]


def main(arguments: Arguments) -> None:
    """Write or print.

    Raises:
        ValueError: a marker that names no table, or a file that holds no results.
    """
    for path in arguments.texts:
        text = render(path.read_text(encoding="utf-8"), arguments.results)
        if not arguments.write:
            print(text)
            continue
        with atomic_write(path) as file:
            file.write(text.encode())
    if not arguments.write:
        return
    for path in newest_of_each_device(arguments.results):
        left_out = draw(read_results(path), path.parent, path.name)
        drawn = [name for name, reason in left_out.items() if reason is None]
        print(f"{path.parent}: {', '.join(drawn) or 'nothing to draw'}")


def _of_device(table: str, file: Path) -> str:
    """A device's table under a line that names the run; "" if it has no such rows."""
    results = read_results(file)
    lines = TABLES[table](results)
    if not lines:
        return ""
    limits, place = results["limits"], file.relative_to(file.parents[3])
    about = (
        f"{results['device']}, PyTorch {results['versions']['torch']}; in the same run a "
        f"{limits['matmul_dtype']} matrix product reached {limits['matmul_tflops']:.3g} TFLOP/s "
        f"and a copy {limits['copy_gbps']:,.0f} GB/s. `pytest bench --benchmark-only "
        f"--bench-profile {results['profile']}`, {results['date']}, `{place}`:"
    )
    return "\n".join([about, "", *lines])


def _pivot(
    corner: str,
    rows: Sequence[ResultRow],
    down: Callable[[ResultRow], str],
    across: Callable[[ResultRow], str],
    cell: Callable[[Sequence[ResultRow]], str],
) -> list[str]:
    """A table whose lines and columns stand in the order of their first rows."""
    lines, columns = in_order([down(r) for r in rows]), in_order([across(r) for r in rows])
    cells = []
    for line in lines:
        chosen = [
            [row for row in rows if (down(row), across(row)) == (line, column)]
            for column in columns
        ]
        cells.append([line, *(cell(some) if some else "" for some in chosen)])
    return markdown.table([corner, *columns], cells) if cells else []


def _variant(row: ResultRow) -> str:
    return label(row["variant"])


def _rate(rows: Sequence[ResultRow]) -> str:
    return f"{rows[0]['metrics']['tokens_per_s']:,.0f}"


def _rate_and_memory(rows: Sequence[ResultRow]) -> str:
    return ", ".join(filter(None, (_rate(rows), _memory(rows[0]))))


def _memory(row: ResultRow) -> str:
    memory = row["metrics"].get("peak_memory_bytes")
    return "" if memory is None else f"{memory / 2**30:.2f} GiB"


def _brief(dtype: str) -> str:
    return {"bfloat16": "bf16", "float32": "fp32", "float16": "fp16"}.get(dtype, dtype)


if __name__ == "__main__":
    from gpt2.common.cli import run_tool

    run_tool(main, Arguments)
