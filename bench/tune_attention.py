"""Measure the tile sizes of the attention kernels on this GPU and print rows for the table.

    python -m bench.tune_attention --out bench/results

Every candidate of every kernel is held to the error budget of `kernels.testing`, timed at each
length (median of `triton.testing.do_bench`, random data, L2 cache flushed before each run) and
written at once to `tune_attention_<architecture>.json`, so that an interrupted run loses nothing.
The table has two rows per head width, for short and for long sequences; in each, the candidate
with the least mean slowdown against the best at each length wins. It takes a few minutes: about 2 s
of compiling for each of 68 kernels, then 0.1 s for each of 340 measurements.

`--dry-run` does the same at toy sizes, also on a CPU in Triton's interpreter.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from kernels.testing import Referee

DEVICE = "cpu" if INTERPRETED else "cuda"
KERNELS = ("fwd", "dq", "dkv")
# FLOPs per visible score and unit of head width; dkv is timed as the whole one-pass backward.
FLOPS = {"fwd": 4, "dq": 6, "dkv": 10}
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

    with patch.object(_attention_ops, "choose_tiles", chosen):
        yield


def _problem(
    width: int, length: int, dtype: torch.dtype, toy: bool
) -> dict[str, Callable[[], Any]]:
    """The call to time for each kernel."""
    heads = 1 if toy else max(1, CHANNELS // width)
    batch = 1 if toy else max(1, TOKENS // length)
    shape = (batch, length, 3, heads, width)
    q, k, v = torch.randn(shape, device=DEVICE, dtype=dtype).unbind(2)
    do = torch.randn(batch, length, heads, width, device=DEVICE, dtype=dtype)
    options = (None, None, width**-0.5, None, 0.0, False)
    o, lse, _ = _attention_ops.attention_fwd(q, k, v, *options, False)
    operands = (do, q, k, v, o, lse, *options)
    return {
        "fwd": lambda: _attention_ops.attention_fwd(q, k, v, *options, False)[0],
        "dq": lambda: _attention_ops.attention_bwd(*operands, True, True, False)[0],
        "dkv": lambda: _attention_ops.attention_bwd(*operands, False, True, True)[1],
    }


def _time(run: Callable[[], Any]) -> float:
    if INTERPRETED:
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)
    return triton.testing.do_bench(run, warmup=10, rep=40, return_mode="median")


def _referee(width: int, length: int, dtype: torch.dtype) -> Referee:
    """The error budget of one head of one sequence."""
    qkv = torch.randn(3, 1, length, 1, width, device=DEVICE, dtype=dtype)
    inputs = {name: x.requires_grad_() for name, x in zip("qkv", qkv, strict=True)}
    return Referee(lambda q, k, v: attention_reference(q, k, v)[0], inputs)


def _measure(
    kernel: str, tile: Tile, width: int, length: int, run: Callable[[], Tensor], referee: Referee
) -> Measurement:
    """Check a candidate and time it."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # Only the deterministic backward computes dq by a kernel of its own.
        return attention(q, k, v, deterministic=kernel == "dq")

    nothing = Measurement(kernel, width, length, tile, None, None)
    try:
        with _using(kernel, tile):
            wrong = [str(found) for found in referee.judge(attend).values() if not found.within]
            if wrong:
                return replace(nothing, note=f"wrong result: {wrong[0]}")
            milliseconds, result = _time(run), run()
    except triton.runtime.errors.OutOfResources as error:
        return replace(nothing, note=str(error))
    useful = FLOPS[kernel] * result.numel() * (length + 1) / 2
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
    dry_run: bool = False,
) -> Path:
    """Measure every candidate and print the rows of the winners.

    Args:
        out: the folder of the JSON file.
        widths: head widths.
        lengths: sequence lengths, at 32768 tokens of 768 channels.
        dtype: float16 or bfloat16.
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
    file = out / f"tune_attention_{arch}.json"
    measurements: list[Measurement] = []
    for width in widths:
        for length in lengths:
            problem = _problem(width, length, getattr(torch, dtype), toy=dry_run)
            referee = _referee(width, length, getattr(torch, dtype))
            for kernel in KERNELS:
                for tile in CANDIDATES[kernel][: 2 if dry_run else None]:
                    m = _measure(kernel, tile, width, length, problem[kernel], referee)
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
