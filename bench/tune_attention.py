"""Measure the tile sizes of the attention kernels on this GPU and print rows for the table.

    python -m bench.tune_attention --out bench/results
    python -m bench.tune_attention --out bench/results --documents    # of 212 tokens on average

Every candidate of every kernel is held to the error budget of `kernels.testing`, timed at each
length (median of `triton.testing.do_bench`, random data, L2 cache flushed before each run) and
written at once to `tune_attention_<architecture>.json`, so that an interrupted run loses nothing.
The table has two rows per head width, for short and for long sequences; in each, the candidate
with the least mean slowdown against the best at each length wins. It takes a few minutes: about 2 s
of compiling for each of some 80 kernels, then 0.1 s for each of 400 measurements.

`dkv, by elements` is `dkv` where it does not add whole tiles of dq (`WHOLE_TILES` of the table).

`--dry-run` does the same at toy sizes, also on a CPU in Triton's interpreter.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
import tyro
from torch import Tensor

from gpt2.common.cli import failing_plainly
from kernels._attention import operators as _attention_ops
from kernels._attention.tiles import SHORT, Tile, Tiles
from kernels._common.launch import INTERPRETED, architecture
from kernels.attention import attention, attention_reference
from kernels.documents import document_bounds
from kernels.testing import Referee

DEVICE = "cpu" if INTERPRETED else "cuda"
KERNELS = ("fwd", "dq", "dkv")
BY_ELEMENTS = "dkv, by elements"
# FLOPs per visible score and unit of head width; dkv is timed as the whole one-pass backward.
FLOPS = {"fwd": 4, "dq": 6, "dkv": 10, BY_ELEMENTS: 10}
DOCUMENT = 212  # tokens of a story of TinyStories, on average
TOKENS = 32768
CHANNELS = 768

CANDIDATES: dict[str, tuple[Tile, ...]] = {
    "fwd": (
        Tile(128, 64, 8, 3), Tile(128, 64, 8, 2), Tile(128, 64, 4, 2), Tile(128, 64, 4, 3),
        Tile(128, 128, 8, 2), Tile(128, 128, 8, 3), Tile(128, 128, 4, 2), Tile(128, 32, 8, 3),
        Tile(128, 32, 4, 3), Tile(64, 64, 4, 2), Tile(64, 64, 4, 3), Tile(64, 64, 4, 4),
        Tile(64, 128, 4, 2), Tile(64, 32, 4, 3), Tile(256, 64, 8, 2),
    ),
    "dq": (
        Tile(64, 64, 4, 2), Tile(64, 64, 4, 3), Tile(128, 64, 8, 2), Tile(128, 64, 8, 3),
        Tile(128, 32, 8, 2), Tile(64, 32, 4, 2), Tile(64, 128, 4, 2), Tile(128, 128, 8, 2),
    ),
    "dkv": (
        Tile(64, 128, 8, 2), Tile(64, 128, 8, 3), Tile(64, 128, 8, 1), Tile(128, 128, 8, 2),
        Tile(64, 64, 4, 2), Tile(64, 64, 4, 3), Tile(64, 64, 8, 2), Tile(32, 64, 4, 2),
        Tile(32, 128, 8, 2), Tile(32, 128, 4, 2), Tile(128, 64, 8, 2),
    ),
}  # fmt: skip
_SMALL = tuple(
    Tile(rows, columns, warps, stages)
    for stages in (1, 2)
    for rows, columns in ((32, 16), (32, 32), (64, 16), (64, 32), (64, 64), (128, 64))
    for warps in ((2, 4) if rows == 32 else (4, 8))
)
DOCUMENT_CANDIDATES = {
    "fwd": _SMALL,
    "dq": _SMALL,
    "dkv": tuple(Tile(t.block_n, t.block_m, t.warps, t.stages) for t in _SMALL),
}


@dataclass(frozen=True)
class Measurement:
    """One candidate on one problem; milliseconds is None if it cannot run or is wrong."""

    kernel: str
    width: int
    length: int
    tile: Tile
    milliseconds: float | None
    tflops: float | None
    note: str = ""


@contextmanager
def _using(kernel: str, tile: Tile) -> Iterator[None]:
    """Launch `kernel` with `tile`, and the others with their tiles of the table."""
    choose = _attention_ops.choose_tiles

    def chosen(*problem: Any) -> Tiles:
        return choose(*problem)._replace(**{kernel: tile})

    with ExitStack() as stack:
        if kernel == BY_ELEMENTS:
            kernel = "dkv"
            stack.enter_context(patch.object(_attention_ops, "adds_whole_tiles", lambda *_: False))
        stack.enter_context(patch.object(_attention_ops, "choose_tiles", chosen))
        yield


def _documents(batch: int, length: int) -> Tensor:
    """Documents that begin at random places."""
    return document_bounds(torch.rand(batch, length, device=DEVICE) < 1 / DOCUMENT)


def _problem(
    width: int, length: int, dtype: torch.dtype, toy: bool, documents: bool
) -> tuple[dict[str, Callable[[], Any]], float]:
    """The call to time for each kernel, and how many keys a row sees on average."""
    heads = 1 if toy else max(1, CHANNELS // width)
    batch = 1 if toy else max(1, TOKENS // length)
    shape = (batch, length, 3, heads, width)
    q, k, v = torch.randn(shape, device=DEVICE, dtype=dtype).unbind(2)
    do = torch.randn(batch, length, heads, width, device=DEVICE, dtype=dtype)
    seen = (length + 1) / 2
    bounds = _documents(batch, length) if documents else None
    if bounds is not None:
        seen = float((torch.arange(1, length + 1, device=DEVICE) - bounds[0]).float().mean())
    options = (None, bounds, width**-0.5, None, 0.0, False)
    o, lse, _ = _attention_ops.attention_fwd(q, k, v, *options, False)
    operands = (do, q, k, v, o, lse, *options)
    calls: dict[str, Callable[[], Any]] = {
        "fwd": lambda: _attention_ops.attention_fwd(q, k, v, *options, False)[0],
        "dq": lambda: _attention_ops.attention_bwd(*operands, True, True, False)[0],
        "dkv": lambda: _attention_ops.attention_bwd(*operands, False, True, True)[1],
    }
    if not documents and _attention_ops.adds_whole_tiles(
        architecture(q.device), width, q.element_size()
    ):
        calls[BY_ELEMENTS] = calls["dkv"]
    return calls, seen


def _time(run: Callable[[], Any]) -> float:
    if INTERPRETED:
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)
    return triton.testing.do_bench(run, warmup=10, rep=40, return_mode="median")


def _referee(
    width: int, length: int, dtype: torch.dtype, documents: bool
) -> tuple[Referee, Tensor | None]:
    """The error budget of one head of one sequence, and its documents."""
    qkv = torch.randn(3, 1, length, 1, width, device=DEVICE, dtype=dtype)
    inputs = {name: x.requires_grad_() for name, x in zip("qkv", qkv, strict=True)}
    bounds = _documents(1, length) if documents else None
    return Referee(
        lambda q, k, v: attention_reference(q, k, v, documents=bounds)[0], inputs
    ), bounds


def _measure(
    kernel: str, tile: Tile, width: int, length: int, run: Callable[[], Tensor], seen: float,
    referee: Referee, bounds: Tensor | None,
) -> Measurement:  # fmt: skip
    """Check a candidate and time it."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # Only the deterministic backward computes dq by a kernel of its own.
        return attention(q, k, v, deterministic=kernel == "dq", documents=bounds)

    nothing = Measurement(kernel, width, length, tile, None, None)
    try:
        with _using(kernel, tile):
            wrong = [str(found) for found in referee.judge(attend).values() if not found.within]
            if wrong:
                return replace(nothing, note=f"wrong result: {wrong[0]}")
            milliseconds, result = _time(run), run()
    except triton.runtime.errors.OutOfResources as error:
        return replace(nothing, note=str(error))
    useful = FLOPS[kernel] * result.numel() * seen
    return replace(nothing, milliseconds=milliseconds, tflops=useful / milliseconds * 1e-9)


def best(measurements: list[Measurement], kernel: str, width: int, short: bool) -> Tile | None:
    """The tile with the least mean slowdown over the lengths of a bucket, among those that run."""
    slowdowns: dict[Tile, list[float]] = {}
    times: dict[int, dict[Tile, float]] = {}
    for m in measurements:
        same = (m.kernel, m.width, m.length <= SHORT) == (kernel, width, short)
        if same and m.milliseconds is not None:
            times.setdefault(m.length, {})[m.tile] = m.milliseconds
    for timed in times.values():
        for tile, milliseconds in timed.items():
            slowdowns.setdefault(tile, []).append(milliseconds / min(timed.values()))
    complete = max(map(len, slowdowns.values()), default=0)
    means = {t: statistics.mean(s) for t, s in slowdowns.items() if len(s) == complete}
    return min(means, key=means.__getitem__, default=None)


def rows(measurements: list[Measurement], arch: str) -> str:
    """The winners as rows of `kernels._attention.tiles.TABLE`."""
    lines = []
    for width in sorted({m.width for m in measurements}):
        lines.append(f'    ("{arch}", {width}): (')
        for short in (True, False):
            tiles = [best(measurements, kernel, width, short) for kernel in KERNELS]
            if None not in tiles:
                row = ", ".join(str(tuple(tile)) for tile in tiles if tile is not None)
                lines.append(f"        ({row}),")
        lines.append("    ),")
    return "\n".join(lines)


def tune(
    out: Path,
    widths: tuple[int, ...] = (64, 128),
    lengths: tuple[int, ...] = (128, 256, 512, 1024, 4096),
    dtype: str = "bfloat16",
    documents: bool = False,
    dry_run: bool = False,
) -> Path:
    """Measure every candidate and print the rows of the winners.

    Args:
        out: the folder of the JSON file.
        widths: head widths.
        lengths: sequence lengths, at 32768 tokens of 768 channels.
        dtype: float16 or bfloat16.
        documents: several in a sequence, for `DOCUMENTS` and `DOCUMENTS_WIDE` of the table.
        dry_run: toy sizes and few candidates, to see that everything works.

    Returns:
        The JSON file.
    """
    if not torch.cuda.is_available() and not (dry_run and INTERPRETED):
        raise ValueError(
            "tuning needs a GPU, and PyTorch finds none; without one TRITON_INTERPRET=1 in the "
            "environment and --dry-run try a few candidates"
        )
    if dry_run:
        widths, lengths, dtype = (16,), (32, SHORT + 32), "float16"
    arch = architecture(torch.device(DEVICE))
    report: dict[str, Any] = {
        "device": "interpreter" if INTERPRETED else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "dtype": dtype,
        "tokens": TOKENS,
        "channels": CHANNELS,
        "measurements": [],
    }
    out.mkdir(parents=True, exist_ok=True)
    candidates = DOCUMENT_CANDIDATES if documents else CANDIDATES
    file = out / f"tune_attention_{arch}{'_documents' if documents else ''}.json"
    measurements: list[Measurement] = []
    for width in widths:
        for length in lengths:
            problem, seen = _problem(width, length, getattr(torch, dtype), dry_run, documents)
            judge = _referee(width, length, getattr(torch, dtype), documents)
            for kernel, call in problem.items():
                for tile in candidates[kernel.partition(",")[0]][: 2 if dry_run else None]:
                    m = _measure(kernel, tile, width, length, call, seen, *judge)
                    measurements.append(m)
                    report["measurements"].append(asdict(m))
                    file.write_text(json.dumps(report, indent=1) + "\n")
                    speed = m.note[:60] if m.tflops is None else f"{m.tflops:7.1f} TFLOP/s"
                    print(f"{kernel:4} D={width:<4} T={length:<6} {tuple(tile)!s:18} {speed}")
    print(rows(measurements, arch))
    return file


if __name__ == "__main__":
    with failing_plainly():
        print(tyro.cli(tune))
