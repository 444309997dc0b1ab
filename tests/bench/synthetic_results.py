"""A result file with every kind of row, of invented figures: for tests, in a temporary folder."""

import itertools
from typing import Any

from gpt2.config import PRESETS
from gpt2.model import count_parameters
from gpt2.training.estimate import flops_per_token

MATMUL_TFLOPS, COPY_GBPS = 790.0, 4300.0
SIZES = {"gpt2": 32, "gpt2-medium": 16, "gpt2-large": 8, "gpt2-xl": 4}
PARAMETERS = {model: count_parameters(PRESETS[model]) for model in SIZES}
OURS, OURS_PLAIN = "attn triton, kernels triton", "attn sdpa, kernels torch"


def results(**changes: Any) -> dict[str, Any]:
    """The whole file."""
    header = {
        "device": "Synthetic GPU", "slug": "synthetic", "date": "2000-01-01",
        "started": "2000-01-01T00:00:00", "commit": "0000000", "profile": "gpu",
        "versions": {"python": "3.12.3", "torch": "2.11.0", "triton": "3.6.0", "cuda": "13.0"},
        "limits": {
            "matmul_tflops": MATMUL_TFLOPS, "matmul_dtype": "bfloat16", "copy_gbps": COPY_GBPS,
            "launch_us": 3.0,
        },
    }  # fmt: skip
    rows = [*_training(), *_ladder(), *_attention(), *_memory_bound(), *_loss_memory()]
    return {**header, "rows": rows, **changes}


def row(bench, case, variant, seconds=0.001, *, ours=False, **metrics):
    """A timed row."""
    times = {"median": seconds, "min": seconds, "p10": seconds, "p90": seconds, "rounds": 5}
    return {
        "bench": bench, "case": case, "variant": variant, "status": "ok", "reason": None,
        "ours": ours, "seconds": times, "metrics": metrics,
    }  # fmt: skip


def not_timed(row: dict[str, Any], status: str, reason: str) -> dict[str, Any]:
    """The same row without a measurement."""
    return {**row, "status": status, "reason": reason, "seconds": None, "metrics": {}}


def _rows(bench, case, metric, values):
    """One row per variant, with its value of the metric."""
    return [
        row(bench, {**case, "dtype": "bfloat16"}, name, ours=name == "triton", **{metric: value})
        for name, value in values.items()
    ]


def _training() -> list[dict[str, Any]]:
    shares = {OURS: 0.62, OURS_PLAIN: 0.5, "nanoGPT": 0.41, "transformers": 0.3}
    small = {"dtype": "bfloat16", "model": "gpt2", "compile": False}
    short, largest = {**small, "T": 128, "B": 256}, {**small, "T": 1024, "largest_batch": True}
    found = [
        row("training", short, OURS, ours=True, tokens_per_s=7e5, peak_memory_bytes=2e10),
        row("training", largest, OURS, ours=True, tokens_per_s=6e5, largest_batch=192),
    ]
    for (model, B), compiled in itertools.product(SIZES.items(), (False, True)):
        case = {**small, "model": model, "T": 1024, "B": B, "compile": compiled}
        limit = MATMUL_TFLOPS * 1e12 / flops_per_token(PRESETS[model], 1024)
        parameters = PARAMETERS[model]
        for i, (name, share) in enumerate(shares.items()):
            rate = limit * share * (1.15 if compiled else 1)
            memory = 16 * parameters + (i + 1) * B * 1.6e8 * (parameters / 1.2e8) ** 0.7
            measured = {"tokens_per_s": rate, "peak_memory_bytes": memory}
            found.append(row("training", case, name, B * 1024 / rate, ours=i < 2, **measured))
    return found


def _ladder() -> list[dict[str, Any]]:
    case = {"model": "gpt2", "T": 1024, "dtype": "bfloat16", "B": 16, "ladder": True}
    rungs = {
        "naive, fp32": 41e3, "+ bfloat16 autocast": 120e3, "+ padded vocabulary": 160e3,
        "+ SDPA": 260e3, "+ loss in chunks": 310e3, "+ fused kernels": 420e3,
        "+ Triton attention": 455e3, "+ torch.compile": 560e3,
    }  # fmt: skip
    found = [
        row("training", case, name, ours=True, tokens_per_s=rate, peak_memory_bytes=3e15 / rate)
        for name, rate in rungs.items()
    ]
    found[-2] = not_timed(found[-2], "skipped", "out of memory")
    return found


def _attention() -> list[dict[str, Any]]:
    peak = {"triton": 430, "naive": 60, "sdpa": 400, "sdpa-cudnn": 520, "flex": 330}
    case = {"B": 16, "H": 12, "window": None, "packed": True}
    found = []
    for T, D, which in itertools.product((128, 1024, 4096), (64, 128), ("forward", "backward")):
        rates = {name: top * T / (T + 600) for name, top in peak.items()}
        found += _rows("attention", {**case, "T": T, "D": D, "pass": which}, "tflops", rates)
    return found


def _memory_bound() -> list[dict[str, Any]]:
    norm, activation = ("norms", {"C": 768}), ("mlp", {"F": 3072})
    operators = {"add_layer_norm": norm, "rms_norm": norm, "gelu_tanh": activation}
    shares = {"triton": 0.9, "eager": 0.35, "torch.compile": 0.8, "liger": 0.7}
    rates = {name: COPY_GBPS * share for name, share in shares.items()}
    case = {"op": "cross_entropy", "N": 8192, "V": 50304, "pass": "both"}
    found = _rows("losses", case, "gbps", {"triton in place": 4000, **rates})
    for (op, (bench, width)), which in itertools.product(
        operators.items(), ("forward", "backward")
    ):
        found += _rows(bench, {"op": op, "N": 16384, **width, "pass": which}, "gbps", rates)
    return found


def _loss_memory() -> list[dict[str, Any]]:
    slopes = {"triton": 3e3, "torch-chunked": 4e3, "eager": 7e5, "torch.compile": 3e5, "liger": 9e3}
    case = {"op": "linear_cross_entropy", "C": 768, "V": 50304, "pass": "both"}
    found = []
    for N in (8192, 32768, 65536):
        memory = {name: 4e8 + slope * N for name, slope in slopes.items()}
        found += _rows("losses", {**case, "N": N}, "peak_memory_bytes", memory)
    return found
