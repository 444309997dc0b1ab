"""Which attention backends can run here, and which of them is the fastest.

`unusable` tries a backend on a few positions, so that a refusal names a cause that was seen;
`fastest` measures all that can run, once per device, shape and type, for `--attn auto`.
"""

import importlib.util
import json
import math
import os
import platform
import statistics
import time
import warnings
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor

from gpt2.attention import BACKENDS, Backend, has_flash_attn, naive
from gpt2.common.files import lock, write_json
from gpt2.config import GPTConfig
from kernels.documents import document_bounds

# Modules that are no dependencies of ours, and how they are had.
PACKAGES = {
    "flash3": ("flash_attn_interface", "it is built in the folder hopper of FlashAttention's code"),
    "flash4": ("flash_attn.cute", "pip install flash-attn-4"),
}
NAMES = {
    "naive": "masked matrix products",
    "sdpa": "PyTorch's scaled_dot_product_attention",
    "sdpa-math": "PyTorch's unfused attention, forced",
    "sdpa-efficient": "PyTorch's memory-efficient kernel, forced",
    "sdpa-flash": "PyTorch's FlashAttention kernel, forced",
    "sdpa-cudnn": "cuDNN's kernel, forced",
    "flash3": "FlashAttention-3's package",
    "flash4": "FlashAttention-4's package",
    "flex": "PyTorch's FlexAttention",
}


def unusable(
    name: str, config: GPTConfig, *, device: torch.device, dtype: torch.dtype
) -> str | None:
    """The reason why backend `name` cannot train a model of `config` in `dtype` on `device`, with
    the remedy; None if it can."""
    if name not in BACKENDS:
        return f"there is no such attention backend: choose one of {', '.join(BACKENDS)}"
    if name == "triton" and config.head_dim > 256:
        return f"our kernel takes head widths up to 256, got {config.head_dim}; use more heads"
    if name == "triton":
        return triton_unusable(device, instead="--attn sdpa")
    if name in ("naive", "sdpa"):  # they run wherever PyTorch does
        return None
    module, how = PACKAGES.get(name, ("torch", ""))
    if not _is_installed(module):
        return f"the module {module} is not installed ({how}); use --attn sdpa"
    reason = _try(BACKENDS[name], config, device, dtype)
    if reason and name == "flash" and device.type == "cuda" and not has_flash_attn("cuda"):
        reason += "; pip install -e '.[flash]' for FlashAttention's own package"
    return f"{reason}; use --attn sdpa" if reason else None


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it would be in
        return False


def _try(
    backend: Backend, config: GPTConfig, device: torch.device, dtype: torch.dtype
) -> str | None:
    """What keeps a backend from a forward and a backward pass over 16 positions, in its words."""
    with warnings.catch_warnings(record=True) as caught, _fork_rng(device):
        warnings.simplefilter("always")  # PyTorch gives the reasons as warnings
        try:
            _step(backend, *_inputs(config, 1, 16, device, dtype))
        except Exception as error:
            reasons = [str(w.message) for w in caught if w.category is UserWarning]
            words = [str(error).strip().partition("\n")[0], *reasons]
            return " ".join(said.partition(" (Triggered")[0] for said in words).rstrip(".")
    return None


def _fork_rng(device: torch.device) -> AbstractContextManager[None]:
    """Leave the random numbers of a run as they are: those of the CPU and of this GPU alone."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _inputs(
    config: GPTConfig, B: int, T: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, dict[str, int | float | Tensor | None]]:
    """Inputs as a model of `config` gives them, where documents are T / 5 long."""
    shape = (B, T, 3, config.n_head, config.head_dim)
    documents = None
    if config.attend == "within-documents":
        first = torch.arange(T, device=device).expand(B, T) % -(-T // 5) == 0
        documents = document_bounds(first)
    options = {"window": config.window, "dropout_p": config.dropout, "documents": documents}
    return torch.randn(shape, device=device, dtype=dtype, requires_grad=True), options


def _step(backend: Backend, qkv: Tensor, options: dict[str, int | float | Tensor | None]) -> None:
    qkv.grad = None
    backend(qkv, **options).sum().backward()  # type: ignore[arg-type]


CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "gpt2/attention.json"
MAX_SCORES = {"cpu": 2**24, "cuda": 2**27}  # measured: some seconds at most, and 5 GB
HOLDING = {"naive", "sdpa-math"}  # all scores at once
TIE = 1.1  # a backend must be this much faster than an earlier one to be chosen before it


def fastest(
    config: GPTConfig, batch_size: int, *, device: torch.device, dtype: torch.dtype
) -> tuple[str, dict[str, float]]:
    """The fastest backend for training a model of `config`, forward and backward.

    It is measured once on this machine, with this PyTorch, for this shape and type, and kept in the
    file `CACHE`; processes that ask at one time wait for the first. Kernels of ours that are
    interpreted do not take part. Of a batch with more than `MAX_SCORES` scores a part is measured:
    fewer sequences, or a shorter one, without the backends that would hold all its scores.

    Args:
        config: the model; which kernels it names does not matter.
        batch_size: sequences a step.
        device: where it will run.
        dtype: what it computes in.

    Returns:
        Its name, and the median seconds of every backend that can run.
    """
    most = MAX_SCORES.get(device.type, MAX_SCORES["cpu"]) // config.n_head
    B = max(1, min(batch_size, most // config.block_size**2))
    T = max(1, min(config.block_size, math.isqrt(most)))
    options = (config.window, config.dropout, config.attend)
    key = ", ".join(
        map(str, (
            _name_of(device), torch.__version__, torch.get_num_threads(), dtype,
            f"{B} x {T} of {config.block_size} x {config.n_head} x {config.head_dim}", *options,
        ))
    )  # fmt: skip
    CACHE.parent.mkdir(parents=True, exist_ok=True)
    with lock(CACHE.with_suffix(".lock"), waiting="another process measures attention: waiting"):
        known = json.loads(CACHE.read_text(encoding="utf-8")) if CACHE.exists() else {}
        if key not in known:
            known[key] = _measure(config, B, T, device, dtype)
            write_json(CACHE, known)
    seconds: dict[str, float] = known[key]
    least = min(seconds.values())
    return next(name for name, value in seconds.items() if value <= least * TIE), seconds


def _measure(
    config: GPTConfig, B: int, T: int, device: torch.device, dtype: torch.dtype
) -> dict[str, float]:
    """Median seconds of a forward and a backward pass by each backend, in turns."""
    names = ["sdpa", *(name for name in BACKENDS if name != "sdpa")]  # at a tie PyTorch's choice
    if device.type == "cpu":
        names.remove("triton")
    if T < config.block_size:
        names = [name for name in names if name not in HOLDING]
    if not has_flash_attn(device.type):
        names.remove("flash")  # that is sdpa-flash
    names = [n for n in names if unusable(n, config, device=device, dtype=dtype) is None]
    calls = 1 if device.type == "cpu" else 10
    begin = time.perf_counter()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with _fork_rng(device):
        inputs = _inputs(config, B, T, device, dtype)
        while len(seconds["sdpa"]) < 6 or time.perf_counter() < begin + 0.2:
            for name, times in seconds.items():
                _synchronize(device)
                start = time.perf_counter()
                for _ in range(calls):
                    _step(BACKENDS[name], *inputs)
                _synchronize(device)
                times.append((time.perf_counter() - start) / calls)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _name_of(device: torch.device) -> str:
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{kind} of {platform.node()}"


def describe(name: str, device: torch.device) -> str:
    """Name the implementation behind a backend on this machine, in a few words."""
    if name == "flash":
        return "flash_attn package" if has_flash_attn(device.type) else NAMES["sdpa-flash"]
    if name == "triton":
        return "our Triton kernel" + _limits(device)
    return NAMES.get(name, "a backend of your own")


def _limits(device: torch.device) -> str:
    """What makes our kernel slow on a device, or whose tile sizes it takes."""
    if device.type == "cpu":
        return ", interpreted"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return ", slow here: before compute capability 8.0 Triton uses no tensor cores"
    from kernels._attention.tiles import rows_of
    from kernels._common.launch import architecture

    card = architecture(device)
    rows = rows_of(card)
    taken = "small ones" if rows == "other" else f"those of {rows}"
    return "" if rows == card else f", whose table has no tile sizes for {card} and takes {taken}"


def triton_unusable(device: torch.device, *, instead: str) -> str | None:
    """The reason why none of our kernels can run on `device`, with the remedy; None if they can.

    `instead` names the option that does without them.
    """
    if importlib.util.find_spec("triton") is None:
        return f"Triton is not installed (it exists for Linux); use {instead}"
    if device.type not in ("cpu", "cuda"):
        return f"Triton has no {device.type} compiler; use {instead}"
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "on a CPU Triton runs in its interpreter: set TRITON_INTERPRET=1 before Python"
    return None


def _self_check() -> None:
    """Print which backends can run here, and how far each of them is from float64."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    for window in (None, 16):
        print(f"largest distance from float64, {dtype} on {device.type}, window {window}:")
        config = GPTConfig(n_head=4, n_embd=128, window=window)
        qkv = torch.randn(2, 100, 3, 4, 32, device=device, dtype=dtype)
        exact = naive(qkv.double(), window=window, dropout_p=0.0)
        for name, backend in BACKENDS.items():
            reason = unusable(name, config, device=device, dtype=dtype)
            if reason is None:
                y = backend(qkv, window=window, dropout_p=0.0, documents=None)
                error = (y - exact).abs().max() / exact.max()
                # Sums in another order: a few roundings of values below the largest.
                assert error <= 8 * torch.finfo(dtype).eps, f"{name} is {error:.1e} from float64"
            print(f"    {name}: {reason or f'{error:.1e} ({describe(name, device)})'}")


if __name__ == "__main__":
    _self_check()
