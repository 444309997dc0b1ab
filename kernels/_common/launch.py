"""The interpreter, device and architecture that a kernel is launched on, and checks of tensors."""

import functools
from contextlib import AbstractContextManager, nullcontext

import torch
import triton
from torch import Tensor

INTERPRETED: bool = triton.knobs.runtime.interpret
"""True when Triton was imported with TRITON_INTERPRET=1: kernels then run on the CPU."""


if INTERPRETED:
    from kernels import interpreter

    interpreter.enable()  # instead of Triton's own

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def check_launchable(op: str, *tensors: Tensor, one_dtype: bool = True) -> None:
    """Raise ValueError, saying what to change, unless the kernels of `op` can run on these tensors.

    All tensors must share one device, a CUDA (or ROCm) one unless the interpreter is on, and have
    one dtype (with one_dtype=False: each its own) of float16, bfloat16 and float32.
    """
    device, dtype = tensors[0].device, tensors[0].dtype
    for tensor in tensors[1:]:
        if tensor.device != device or (one_dtype and tensor.dtype != dtype):
            shared = "device and dtype" if one_dtype else "a device"
            raise ValueError(
                f"{op}: all tensors must share {shared}, got {device} {dtype} "
                f"and {tensor.device} {tensor.dtype}"
            )
    for tensor in tensors:
        check_dtype(op, tensor.dtype)
    if device.type != "cuda" and not INTERPRETED:
        raise ValueError(
            f"{op}: the kernels run on a GPU, got tensors on {device}; move them to cuda, or set "
            "TRITON_INTERPRET=1 before Python starts to run them on the CPU, slowly"
        )


def check_dtype(op: str, dtype: torch.dtype) -> None:
    """Raise ValueError unless the kernels of `op` can compute in this dtype."""
    if dtype not in DTYPES:
        raise ValueError(f"{op}: dtype must be float16, bfloat16 or float32, got {dtype}")


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """A context in which Triton launches on the tensor's device; free if it is the current one."""
    if tensor.device.type != "cuda" or tensor.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(tensor.device)


def architecture(device: torch.device) -> str:
    """What kernels are compiled for on this device: `"sm_90"`, `"gfx942"` or `"interpreter"`."""
    index = device.index
    if index is None and device.type == "cuda" and not INTERPRETED:
        index = torch.cuda.current_device()
    return _architecture(index)


def launch_options(threads: int, tensor: Tensor) -> dict[str, int]:
    """Triton's options for programs of that many threads; products and sums are to be fused."""
    lanes = 64 if architecture(tensor.device).startswith("gfx9") else 32
    return {"num_warps": threads // lanes, "enable_fp_fusion": True}


def multiprocessors(tensor: Tensor) -> int:
    """Multiprocessors (compute units) of the tensor's device; without a GPU, those of an H100."""
    return _multiprocessors(tensor.device.index if tensor.device.type == "cuda" else None)


@functools.cache
def _multiprocessors(index: int | None) -> int:
    if index is None:
        return 132
    return torch.cuda.get_device_properties(index).multi_processor_count


def l2_bytes(tensor: Tensor) -> int:
    """Bytes of the L2 cache of the tensor's device; without a GPU, of an H100."""
    if tensor.device.type != "cuda":
        return 50 << 20
    return torch.cuda.get_device_properties(tensor.device).L2_cache_size


@functools.cache
def _architecture(index: int | None) -> str:
    if INTERPRETED:
        return "interpreter"
    with nullcontext() if index is None else torch.cuda.device(index):
        target = triton.runtime.driver.active.get_current_target()
    # ROCm appends features to the name: "gfx942:sramecc+:xnack-".
    return f"sm_{target.arch}" if target.backend == "cuda" else target.arch.partition(":")[0]
