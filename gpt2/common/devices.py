"""Devices: GPUs by their data sheets, the choice of a device, its name and memory."""

import os
from typing import NamedTuple

import torch

from gpt2.common.cpu import cpu_model, memory_limit
from gpt2.common.distributed import world


class Device(NamedTuple):
    """A GPU by its data sheet."""

    tflops_16: float  # dense 16-bit matrix products accumulated in float32, TFLOP/s
    tflops_32: float  # float32 matrix products without TF32, TFLOP/s
    bandwidth: float  # of the memory, GB/s
    memory: int  # GiB; sheets say GB, and devices have about as many GiB
    bf16: bool = True  # the 16-bit arithmetic includes bf16


# NVIDIA's data sheets, SXM modules unless said; for the RTX cards the whitepapers of GA102 and Ada;
# the A10G as it is quoted for AWS's G5. Matched against the device name in this order.
DEVICES = {
    "B200": Device(2250, 80, 8000, 180),
    "H200": Device(989, 67, 4800, 141),
    "H100 PCIe": Device(756, 51, 2000, 80),
    "H100": Device(989, 67, 3350, 80),
    "A100": Device(312, 19.5, 2039, 80),
    "A10G": Device(70, 31.5, 600, 24),
    "L40S": Device(362, 91.6, 864, 48),
    "L4": Device(121, 30.3, 300, 24),
    "T4": Device(65, 8.1, 320, 16, bf16=False),
    "V100": Device(125, 15.7, 900, 32, bf16=False),
    "RTX 4090": Device(165, 82.6, 1008, 24),
    "RTX 3090": Device(71, 35.6, 936, 24),
}


def peak_flops(device: torch.device) -> float | None:
    """Data-sheet rate of 16-bit matrix products in FLOP/s; None if it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((d.tflops_16 * 1e12 for key, d in DEVICES.items() if key in name), None)


def device_memory(device: torch.device) -> int | None:
    """Bytes of memory of the device that this process may use; None if the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    return min(there, memory_limit() or there)


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def device_name(device: torch.device) -> str:
    """A name such as "NVIDIA H200"; for a CPU, model and threads in use: "AMD EPYC, 2 threads"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{cpu_model()}, {threads} thread{'s' if threads > 1 else ''}"


def choose_device(asked: str) -> tuple[torch.device, str | None]:
    """Choose the device of `--device`. For "auto" it is the best one, with a note on the choice; a
    ValueError says that there is no such device, or why PyTorch cannot use it here."""
    if asked in ("auto", "cuda") and torch.cuda.is_available() and world().size > 1:
        asked = f"cuda:{world().local_rank}"  # one GPU for each process of torchrun
    if asked == "auto":
        if torch.cuda.is_available():
            name = torch.cuda.get_device_name()
            return torch.device("cuda"), f"device: cuda ({name}), as PyTorch finds a GPU"
        if torch.backends.mps.is_available():
            return torch.device("mps"), "device: mps, Apple's GPU"
        threads = torch.get_num_threads()
        return torch.device("cpu"), f"device: cpu ({threads} threads), as PyTorch finds no GPU"
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise ValueError(
            f"--device {asked}: no such device; use auto, cpu, cuda, cuda:1 or mps"
        ) from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            reason = "this PyTorch is built for CPUs only"
            if torch.version.cuda or torch.version.hip:
                reason = "no GPU or driver was found"
            raise ValueError(f"--device {asked}: PyTorch cannot use CUDA here ({reason})")
        count = torch.cuda.device_count()
        if device.index is not None and device.index >= count:
            raise ValueError(f"--device {asked}: there are {count} GPUs, counted from 0")
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"--device {asked}: PyTorch finds no Apple GPU here")
    elif device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"--device {asked}: this trainer runs on cpu, cuda and mps")
    return device, None


def human_bytes(size: float) -> str:
    """A size for people, such as "1.50 GiB"."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"
