"""The limits of this device, measured in the same run as the figures compared with them.

    matmul_tflops   product of two large square matrices: limit of compute-bound operators
    copy_gbps       bytes read and written by a copy of a large tensor: limit of memory-bound ones
    launch_us       host time to queue one small operation (CUDA): limit of small ones

Data are random: on zeros a GPU draws less power and runs faster than on real data. The fastest
round counts, after a warm-up that takes a GPU past its short boost.
"""

from dataclasses import dataclass

import torch

from bench.harness.clocks import Clock, Work, warm


@dataclass(frozen=True)
class Limits:
    """Measured limits of a device; launch_us is None on a CPU."""

    matmul_tflops: float
    matmul_dtype: str
    copy_gbps: float
    launch_us: float | None


def measure_limits(clock: Clock, *, quick: bool = False) -> Limits:
    """Measure the limits of the clock's device; `quick` takes small sizes and few rounds."""
    device = clock.device
    gpu = device.type == "cuda"
    dtype = torch.bfloat16 if gpu else torch.float32
    size = 8192 if gpu else 1024 if quick else 2048
    numel = 2**28 if gpu else 2**23 if quick else 2**25
    matmul = _fastest(clock, _matmul(size, dtype, device), quick)
    copy = _fastest(clock, _copy(numel, device), quick)
    launch = None
    if gpu:
        tiny = torch.zeros(1, device=device)
        launch = 1e6 * min(clock.wall(Work(lambda: tiny.add_(1)), calls=1000) for _ in range(5))
    clock.release()
    return Limits(
        matmul_tflops=2 * size**3 / matmul / 1e12,
        matmul_dtype=str(dtype).removeprefix("torch."),
        copy_gbps=2 * 4 * numel / copy / 1e9,
        launch_us=launch,
    )


def _matmul(size: int, dtype: torch.dtype, device: torch.device) -> Work:
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(a)
    return Work(lambda: torch.mm(a, b, out=product))


def _copy(numel: int, device: torch.device) -> Work:
    source = torch.randn(numel, device=device, dtype=torch.float32)
    target = torch.empty_like(source)
    return Work(lambda: target.copy_(source))


def _fastest(clock: Clock, work: Work, quick: bool) -> float:
    rounds, warm_up = (3, 0.05) if quick else (10, 0.5)
    warm(lambda: clock.once(work), warm_up)
    return min(clock.once(work) for _ in range(rounds))
