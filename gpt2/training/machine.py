"""The machine that a run computes on: device, compute type and kernels, chosen or checked.

An explicit choice that cannot be had is a ValueError; only `auto` chooses, and says what and why.
"""

import dataclasses
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import torch

from gpt2.backends import describe, fastest, triton_unusable, unusable
from gpt2.common.devices import DTYPES
from gpt2.config import PORTABLE, GPTConfig, Settings, TrainConfig

# What the kernels of `TrainConfig.kernels` compute.
FUSED = {"norm_kernel": "norms", "mlp_kernel": "MLP activation", "loss_kernel": "head and loss"}


@dataclass(frozen=True)
class Machine:
    """Device, compute type and compilation of a run, and a note on each choice."""

    device: torch.device
    dtype: torch.dtype
    compile: bool
    notes: tuple[str, ...]

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context for forward passes in the compute type."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)


def choose_machine(
    device: torch.device, config: Settings, shape: GPTConfig, *, before: str | None = None
) -> tuple[Machine, GPTConfig]:
    """Settle compute type, kernels and compilation for a model of `shape` on `device`.

    Args:
        device: where it will run.
        config: what was asked for.
        shape: the model; which kernels it names does not matter.
        before: the attention backend of a run that goes on: "auto" keeps to it where it can run.

    Returns:
        The machine, and `shape` with the kernels settled.

    Raises:
        ValueError: an explicit choice that this machine cannot run, with the reason and the remedy.
    """
    notes = []
    dtype, attn = config.dtype, config.attn
    asked = {name: getattr(config, name) or config.kernels for name in FUSED}
    if interpreted(device, config):  # takes effect when kernels are imported, at the first call
        os.environ.setdefault("TRITON_INTERPRET", "1")
    compute = DTYPES.get(dtype)
    if compute is None:
        compute, why = _best_dtype(device)
        notes.append(f"dtype: {str(compute).removeprefix('torch.')}, {why}")
    elif compute == torch.bfloat16 and device.type == "cuda" and not _native_bf16(device):
        raise ValueError(
            f"--dtype bf16: {torch.cuda.get_device_name(device)} has no bf16 arithmetic; "
            "use fp16 or fp32"
        )
    if attn == "auto" and before and not unusable(before, shape, device=device, dtype=compute):
        chosen, why = before, "as before"
    elif attn == "auto":
        chosen, seconds = fastest(shape, config.batch_size, device=device, dtype=compute)
        table = sorted(seconds.items(), key=itemgetter(1))
        why = "among the fastest here, forward and backward: " + ", ".join(
            f"{name} {1e3 * value:.3g} ms" for name, value in table
        )
    else:
        reason = unusable(attn, shape, device=device, dtype=compute)
        if reason:
            raise ValueError(f"--attn {attn}: {reason}")
        chosen, why = attn, "as asked"
    if config.log_attention and chosen != "triton":
        raise ValueError(
            "--log-attention: the largest logits come out of our kernel, and attention is "
            f"{chosen} here; use --attn triton"
        )
    notes.append(f"attention: {chosen} ({describe(chosen, device)}), {why}")
    fused = _choose_fused(asked, device)
    why = "as asked"
    if "auto" in asked.values():
        why = "PyTorch's where none was asked for: ours are chosen once they have been measured"
    kernels = ", ".join(f"{FUSED[name]} {kernel}" for name, kernel in fused.items())
    notes.append(f"kernels: {kernels}, {why}")
    if config.compile:
        notes.append("torch.compile: on (the first step takes a while); --no-compile turns it off")
    shape = dataclasses.replace(shape, attn=chosen, **fused)  # type: ignore[arg-type]
    if config.check_kernels and all(getattr(shape, name) == PORTABLE[name] for name in PORTABLE):
        notes.append(
            "--check-kernels: nothing to compare, as all kernels are PyTorch's portable ones"
        )
    return Machine(device, compute, config.compile, tuple(notes)), shape


def interpreted(device: torch.device, options: TrainConfig | GPTConfig) -> bool:
    """Tell whether kernels of ours are asked for on a CPU, where they are interpreted."""
    chosen = [getattr(options, name) or vars(options)["kernels"] for name in PORTABLE]
    return device.type == "cpu" and "triton" in chosen


def _choose_fused(asked: dict[str, str], device: torch.device) -> dict[str, str]:
    """Replace each "auto" by PyTorch's kernel: ours are chosen once they have been measured."""
    chosen = {name: PORTABLE[name] if k == "auto" else k for name, k in asked.items()}
    for name, kernel in chosen.items():
        reason = triton_unusable(device, instead="--kernels torch")
        if kernel == "triton" and reason:
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option} triton: {reason}")
    return chosen


def _best_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    if device.type == "cuda":
        if _native_bf16(device):
            return torch.bfloat16, "the GPU multiplies it natively"
        return torch.float16, "this GPU has no bf16 arithmetic; with loss scaling"
    if device.type == "cpu" and _cpu_multiplies_bf16():
        return torch.bfloat16, "the CPU multiplies it natively, faster than fp32"
    return torch.float32, f"there is no fast 16-bit arithmetic on this {device.type}"


def _native_bf16(device: torch.device) -> bool:
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)


def _cpu_multiplies_bf16() -> bool:
    """Tell whether the CPU has instructions for products of bf16 (AVX512-BF16 or AMX)."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = next((line for line in file if line.startswith("flags")), "").split()
    except OSError:  # not Linux
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def peak_memory(device: torch.device) -> tuple[int | None, str]:
    """Return the most bytes that this process has held up to now, and what they are."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), "GPU memory allocated by PyTorch"
    what = "resident memory of the process, with Python and PyTorch in it"
    if device.type == "cpu" and sys.platform == "linux":
        # Not ru_maxrss: a child inherits in it the peak of the process that started it.
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024, what
    if device.type == "cpu" and sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, what
    return None, "not measured on this system"
