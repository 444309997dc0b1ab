"""How a call is timed: on a simulated GPU, and the limits of this machine."""

from typing import Any

import pytest
import torch

from bench.harness.clocks import CpuClock, CudaClock, Work
from bench.harness.limits import measure_limits


class SimulatedGpu:
    """What CudaClock uses of torch.cuda: a host, and a queue that a device works off."""

    def __init__(self) -> None:
        self.host = self.drained = 0.0

    def launch(self, host: float, device: float) -> None:
        self.host += host
        self.drained = max(self.drained, self.host) + device

    def synchronize(self) -> None:
        self.host = max(self.host, self.drained)

    def _sleep(self, cycles: int) -> None:
        self.launch(0.0, cycles / 1.7e9)

    def Event(self, enable_timing: bool) -> Any:
        gpu = self

        class Event:
            at = 0.0

            def record(self) -> None:
                self.at = max(gpu.drained, gpu.host)

            def query(self) -> bool:
                return gpu.host >= self.at

            def synchronize(self) -> None:
                gpu.host = max(gpu.host, self.at)

            def elapsed_time(self, end: "Event") -> float:
                return 1e3 * (end.at - self.at)

        return Event()


@pytest.fixture
def gpu() -> SimulatedGpu:
    return SimulatedGpu()


@pytest.fixture
def cuda_clock(gpu: SimulatedGpu) -> CudaClock:
    device, evict = torch.device("cpu"), lambda: gpu.launch(3e-6, 80e-6)
    return CudaClock(device, cuda=gpu, now=lambda: gpu.host, evict=evict)


@pytest.mark.parametrize("host", [1e-6, 100e-6, 2e-3])
def test_a_gpu_is_timed_without_the_host(gpu, cuda_clock, host):
    def two_kernels() -> None:
        gpu.launch(host, 10e-6)
        gpu.launch(host, 10e-6)

    work = Work(two_kernels)
    assert [cuda_clock.once(work) for _ in range(3)] == pytest.approx([20e-6] * 3)


def test_what_is_prepared_is_not_timed_and_used_once(gpu, cuda_clock):
    used = []

    def prepare() -> tuple[object]:
        gpu.launch(1e-3, 5e-3)
        return (object(),)

    def run(saved: object) -> None:
        used.append(saved)
        gpu.launch(1e-3, 10e-6)

    assert cuda_clock.once(Work(run, prepare)) == pytest.approx(10e-6)
    assert len(used) > 1, "the first wait is too short for such a host"
    assert len(set(used)) == len(used)


def test_a_call_that_waits_for_the_device_is_timed_with_the_host(gpu, cuda_clock):
    def run() -> None:
        gpu.launch(50e-6, 10e-6)
        gpu.synchronize()
        gpu.launch(50e-6, 10e-6)

    work = Work(run)
    assert cuda_clock.once(work) == pytest.approx(70e-6)
    before = gpu.host
    cuda_clock.once(work)
    assert gpu.host - before < 1e-3, "it is not waited for in vain again"


def test_wall_time_is_the_slower_of_launching_and_computing(gpu, cuda_clock):
    launch_bound = Work(lambda: gpu.launch(100e-6, 10e-6))
    compute_bound = Work(lambda: gpu.launch(10e-6, 100e-6))
    assert cuda_clock.wall(launch_bound, calls=50) == pytest.approx(100e-6, rel=0.01)
    assert cuda_clock.wall(compute_bound, calls=50) == pytest.approx(100e-6, rel=0.01)


def test_limits_of_a_cpu_are_measured() -> None:
    limits = measure_limits(CpuClock(), quick=True)
    assert limits.matmul_dtype == "float32"
    assert limits.launch_us is None
    assert limits.matmul_tflops > 0
    assert limits.copy_gbps > 0
