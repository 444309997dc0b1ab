"""GPUs by their data sheets, and what the device at hand has."""

import os
from typing import NamedTuple

import torch


class Device(NamedTuple):
    """A GPU as its data sheet has it."""

    tflops_16: float
    """Dense products of 16-bit matrices, summed in float32: TFLOP/s."""
    tflops_32: float
    """The same of float32 matrices, without TF32."""
    bandwidth: float
    """Of its memory, GB/s."""
    memory: int
    """GiB; sheets say GB, and devices have about as many GiB."""
    bf16: bool = True
    """Whether its 16-bit arithmetic includes bf16."""


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
    """Data-sheet rate of 16-bit matrix products in FLOP/s; None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((d.tflops_16 * 1e12 for key, d in DEVICES.items() if key in name), None)


def device_memory(device: torch.device) -> int | None:
    """Bytes of memory that the device has; None where it cannot be asked."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
