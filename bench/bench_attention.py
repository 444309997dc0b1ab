"""Causal attention, forward and backward, at a fixed number of tokens.

    pytest bench/bench_attention.py --benchmark-only

Variants: ours (triton); naive, masked products with the softmax in fp32; sdpa, PyTorch's own choice
of kernel; sdpa forced to one kernel (sdpa-flash, sdpa-cudnn, sdpa-efficient, sdpa-math);
FlexAttention, compiled; the flash_attn package, where it is installed. `packed` cases start from
one projection (B, T, 3, H, D) and end with its gradient: ours and flash_attn take it whole, the
others take views of it. The others start from three tensors (B, T, H, D). With a window each
position sees itself and the window - 1 before it, which sdpa takes as a mask, made beforehand.

FLOPs are the useful ones: forward 4 B H D times the visible scores, T^2 / 2 of them, or W T - W^2 /
2 with a window W; backward 2.5 times the forward, both 3.5 times. The fraction of the limit is that
of a matrix product in the same run.

Numbers are compared on one sequence with two heads, of up to 2048 positions.
"""

import functools
import importlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from bench.harness.measure import Case, Measure, Setting, Unavailable
from bench.harness.passes import PASSES, Contender, Function, Inputs, operator_case
from bench.harness.peers import NO_COMPILE, missing, ours
from gpt2.attention import causal_mask
from kernels.attention import attention, attention_qkvpacked, attention_reference

CHANNELS = 768
WORK = {"forward": 1.0, "backward": 2.5, "both": 3.5}
FORCED = {
    "sdpa-flash": SDPBackend.FLASH_ATTENTION,
    "sdpa-cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa-math": SDPBackend.MATH,
}
NO_CPU_KERNEL = ("sdpa-cudnn", "sdpa-efficient")
MOST_CHECKED, MOST_CHECKED_CPU = 2048, 512
FLEX_LENGTHS = (1024, 4096)
HOST_BOUND = 1024  # up to here launching can take longer than computing


def useful_flops(B: int, T: int, H: int, D: int, window: int | None, which: str) -> float:
    """Useful FLOPs of causal attention, by the convention above."""
    W = min(window or T, T)
    return WORK[which] * 4 * B * H * D * (W * T - W * W / 2)


def cases(setting: Setting) -> list[Case]:
    """Cases by length, then with head width 128, with a window, and with unpacked inputs."""
    tokens, long = 4096, 1024
    lengths: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096)
    passes: tuple[str, ...] = ("forward", "backward")
    windowed = (4096, 256)
    if setting.smoke:
        tokens, lengths, long, windowed = 256, (128,), 128, (128, 48)
    elif setting.profile == "gpu":
        tokens, lengths = 16384, (*lengths, 16384)
    elif setting.on_gpu:
        tokens, lengths, passes = 16384, (*lengths, 8192, 16384), PASSES

    make = functools.partial(_case, setting, tokens)
    found = [make(T, which, priority=int(T != long)) for T in lengths for which in passes]
    if passes != PASSES:
        found.append(make(long, "both"))
    wide = (long,) if not setting.on_gpu or setting.smoke else (1024, 4096)
    found += [make(T, which, D=128, priority=2) for T in wide for which in passes]
    T, window = windowed
    found += [make(T, which, window=window, priority=2) for which in passes]
    found += [make(long, which, packed=False, priority=2) for which in passes]
    return found


def bench_attention(case: Case, variant: str, measure: Measure) -> None:
    measure(case, variant)


def _case(
    setting: Setting,
    tokens: int,
    T: int,
    which: str,
    *,
    D: int = 64,
    window: int | None = None,
    packed: bool = True,
    priority: int = 1,
) -> Case:
    B = max(1, tokens // T)
    H = (CHANNELS if setting.on_gpu else 256) // D

    def inputs(B: int = B, T: int = T, H: int = H) -> Inputs:
        options: Any = {"device": setting.device, "dtype": setting.dtype, "requires_grad": True}
        if packed:
            return {"qkv": torch.randn(B, T, 3, H, D, **options)}
        return {name: torch.randn(B, T, H, D, **options) for name in ("q", "k", "v")}

    def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention_reference(q, k, v, window=window)[0]

    def contenders() -> Sequence[Contender]:
        return _contenders(setting, window, packed, _no_flex(setting, T, D, packed))

    most_checked = MOST_CHECKED if setting.on_gpu else MOST_CHECKED_CPU
    shape = {"T": T, "B": B, "H": H, "D": D}
    flops = useful_flops(B, T, H, D, window, which)
    return operator_case(
        "attention",
        {
            **shape, "pass": which, "dtype": setting.dtype_name, "window": window, "packed": packed
        },
        contenders,
        reference=_from_packed(reference) if packed else reference,
        inputs=inputs,
        check_inputs=lambda: inputs(1, min(T, most_checked), 2),
        per_second={"tflops": flops / 1e12, "tokens_per_s": B * T},
        three_ways=T <= HOST_BOUND,
        priority=priority,
    )  # fmt: skip


def _contenders(
    setting: Setting, window: int | None, packed: bool, no_flex: str | None
) -> Sequence[Contender]:
    place = _from_packed if packed else (lambda function: function)
    mask = functools.cache(lambda T: causal_mask(T, window, setting.device))
    block_mask = functools.cache(lambda T: _block_mask(T, window, setting.device))
    flex = functools.cache(lambda: torch.compile(flex_attention, dynamic=False))

    def naive(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = _heads_first(q, k, v)
        scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~mask(q.shape[2]), -torch.inf)
        return (scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v).transpose(1, 2)

    def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = _heads_first(q, k, v)
        if window is None:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        seen = mask(q.shape[2])
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2)

    def flex_compiled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = _heads_first(q, k, v)
        y: Tensor = flex()(q, k, v, block_mask=block_mask(q.shape[2]))
        return y.transpose(1, 2)

    kernel = functools.partial(attention_qkvpacked if packed else attention, window=window)
    return [
        ours(setting, kernel),
        Contender("naive", place(naive)),
        Contender("sdpa", place(sdpa)),
        *(
            Contender(name, place(_forced(sdpa, backend)), skip=_no_forced(name, setting, window))
            for name, backend in FORCED.items()
        ),
        Contender("flex", place(_needing_kernel(flex_compiled)), skip=no_flex),
        _flash_attn(setting, window, packed),
    ]


def _no_forced(name: str, setting: Setting, window: int | None) -> str | None:
    if not setting.on_gpu and name in NO_CPU_KERNEL:
        return "PyTorch has this kernel on a GPU only"
    if name == "sdpa-flash" and window is not None:
        return "PyTorch's flash kernel takes no window"
    return None


def _no_flex(setting: Setting, T: int, D: int, packed: bool) -> str | None:
    if setting.smoke:
        return NO_COMPILE
    everything = setting.on_gpu and setting.profile == "full"
    if not everything and not (T in FLEX_LENGTHS and D == 64 and packed):
        return "left out of this profile, as it compiles anew for each shape"
    return None


def _flash_attn(setting: Setting, window: int | None, packed: bool) -> Contender:
    skip = missing("flash_attn", extra="flash")
    if skip is None and not setting.on_gpu:
        skip = "flash_attn needs a GPU"
    name = "flash_attn_qkvpacked_func" if packed else "flash_attn_func"
    options: Any = {"causal": True, "window_size": (-1 if window is None else window - 1, 0)}

    def function(**inputs: Tensor) -> Any:
        return getattr(importlib.import_module("flash_attn"), name)(*inputs.values(), **options)

    return Contender("flash_attn", function, skip=skip)


def _forced(function: Function, backend: SDPBackend) -> Function:
    def forced(q: Tensor, k: Tensor, v: Tensor) -> Any:
        with sdpa_kernel(backend):
            return function(q, k, v)

    return _needing_kernel(forced)


def _needing_kernel(function: Function) -> Function:
    """Raise Unavailable, instead of an error, where PyTorch has no kernel for the problem."""

    def guarded(q: Tensor, k: Tensor, v: Tensor) -> Any:
        try:
            return function(q, k, v)
        except NotImplementedError as error:
            raise Unavailable(str(error).partition(".")[0]) from None
        except RuntimeError as error:
            if "No available kernel" not in str(error):
                raise
            raise Unavailable("PyTorch finds that this kernel cannot take the problem") from None

    return guarded


def _from_packed(function: Function) -> Function:
    """The same function of (B, T, 3, H, D)."""
    return lambda qkv: function(*qkv.unbind(2))


def _heads_first(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def _block_mask(T: int, window: int | None, device: torch.device) -> BlockMask:
    def visible(_batch: Tensor, _head: Tensor, row: Tensor, col: Tensor) -> Tensor:
        seen = row >= col
        return seen if window is None else seen & (row - col < window)

    return create_block_mask(visible, None, None, T, T, device=str(device))
