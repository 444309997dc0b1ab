"""Estimate of a training step on any GPU: FLOPs, bytes, memory, and the most tokens/s.

    python -m bench.estimate --preset gpt2-xl --batch-size 8 --seq-len 1024 --device h200

The time is a roofline (`bench.estimate.roofline`): arithmetic on data sheets, not a measurement.
The memory is that of `gpt2.training.estimate`, which tests hold to measured allocations.
"""

import dataclasses
import importlib.util
import json
from dataclasses import dataclass
from typing import Any, Literal

from bench.estimate.roofline import Estimate, Step
from gpt2.common.devices import DEVICES, human_bytes
from gpt2.config import PORTABLE, PRESETS, Kernel, ModelOptions, Optimizer


@dataclass(frozen=True, kw_only=True)
class Arguments(ModelOptions):
    """Estimate FLOPs, bytes, time and memory of a training step on a GPU, by part."""

    preset: str = "gpt2"
    """demo, mini, gpt2, gpt2-medium, gpt2-large or gpt2-xl."""
    device: str = "h100"
    """b200, h200, h100, h100-pcie, a100, l40s, l4, a10g, t4, v100, rtx-4090 or rtx-3090."""
    batch_size: int = 8
    """Sequences per micro-batch."""
    seq_len: int | None = None
    """Tokens per sequence. None: the preset's context length."""
    grad_accum: int = 1
    """Micro-batches per optimizer step."""
    dtype: Literal["bf16", "fp16", "fp32"] = "bf16"
    """Compute type, by autocast."""
    optimizer: Optimizer = "adamw"
    """adamw, or muon for the hidden matrices with AdamW for the rest."""
    vocab_size: int | None = None
    """Size of the vocabulary. None: the preset's."""
    attn: Literal["naive", "sdpa", "flash", "triton"] = "sdpa"
    """Attention backend."""
    kernels: Kernel = "torch"
    """Norms, MLP activation and loss: torch or triton."""
    norm_kernel: Kernel | None = None
    """torch or triton for the norms. None: as --kernels."""
    mlp_kernel: Kernel | None = None
    """torch or triton for the MLP activation. None: as --kernels."""
    loss_kernel: Kernel | None = None
    """torch or triton for head and loss. None: as --kernels."""
    json: bool = False
    """Print JSON, in FLOPs, bytes and seconds, instead of tables."""


def plan(arguments: Arguments) -> tuple[Step, str]:
    """The requested step, and the name of the device.

    Raises:
        ValueError: an unknown preset or device, a number out of range, or a compute type that
            the device lacks.
    """
    if arguments.preset not in PRESETS:
        raise ValueError(f"unknown preset {arguments.preset!r}: choose one of {', '.join(PRESETS)}")
    names = {name.lower().replace(" ", "-"): name for name in DEVICES}
    name = names.get(arguments.device.lower())
    if name is None:
        raise ValueError(f"unknown device {arguments.device!r}: choose one of {', '.join(names)}")
    if arguments.dtype == "bf16" and not DEVICES[name].bf16:
        raise ValueError(f"--dtype bf16: a {name} has no bf16 arithmetic; use fp16 or fp32")
    if arguments.dtype == "fp32" and arguments.attn == "flash":
        raise ValueError("--attn flash: FlashAttention takes fp16 and bf16, got --dtype fp32")
    preset = PRESETS[arguments.preset]
    seq_len = preset.block_size if arguments.seq_len is None else arguments.seq_len
    given = dataclasses.asdict(arguments)
    for key in PORTABLE.keys() - {"attn"}:
        given[key] = given[key] or arguments.kernels
    given["block_size"] = seq_len
    if arguments.vocab_size is None:
        given["vocab_size"] = preset.vocab_size
    of_model = [field.name for field in dataclasses.fields(preset) if field.name in given]
    options = {key: given[key] for key in of_model}
    if "triton" in options.values() and importlib.util.find_spec("triton") is None:
        raise ValueError(
            "triton: it is not installed (it exists for Linux), and the estimate "
            "reads sizes from our kernels; use --kernels torch, --attn sdpa"
        )
    config = dataclasses.replace(preset, **options)
    step = Step(
        config, arguments.batch_size, seq_len, arguments.dtype, arguments.grad_accum,
        arguments.optimizer,
    )  # fmt: skip
    return step, name


def table(result: dict[str, Any]) -> str:
    """A result as text."""
    step, device, memory = result["step"], result["device"], result["memory"]
    config, flops, mfu = step["config"], result["flops_per_token"], result["mfu"]
    rate = device["tflops_32" if step["dtype"] == "fp32" else "tflops_16"]
    lines = [
        f"{result['parameters']:,} parameters "
        f"({config['n_layer']} layers, {config['n_embd']} wide)",
        f"kernels: attention {config['attn']}, norms {config['norm_kernel']}, MLP "
        f"{config['mlp_kernel']}, loss {config['loss_kernel']}",
        f"a step: {step['grad_accum']} x {step['batch_size']} x {step['seq_len']:,} tokens, "
        f"{step['dtype']}, {step['optimizer']}",
        "",
        f"FLOPs per token {flops['exact'] / 1e9:10.3f} G  exact: matrix weights, causal half of "
        "attention",
        f"                {flops['nanogpt'] / 1e9:10.3f} G  nanoGPT's: weights but positions, all "
        "of attention",
        "",
        f"Roofline of one {device['name']} by its data sheet, eager: {rate:g} TFLOP/s, "
        f"{device['bandwidth']:,} GB/s",
        f"  {'part':<21}{'TFLOP':>9}{'GB':>9}{'ms':>9}{'share':>7}  bound by",
    ]
    for part in result["parts"]:
        lines.append(
            f"  {part['part']:<21}{part['flops'] / 1e12:9.2f}{part['bytes'] / 1e9:9.2f}"
            f"{1e3 * part['seconds']:9.2f}{part['seconds'] / result['seconds']:7.0%}  "
            f"{part['bound']}"
        )
    total = [sum(part[key] for part in result["parts"]) for key in ("flops", "bytes")]
    lines += [
        f"  {'step':<21}{total[0] / 1e12:9.2f}{total[1] / 1e9:9.2f}{1e3 * result['seconds']:9.2f}"
        f"{1:7.0%}",
        f"  at most {result['tokens_per_second']:,.0f} tokens/s, MFU {mfu['exact']:.0%} exact, "
        f"{mfu['nanogpt']:.0%} nanoGPT's",
        f"  exact FLOPs at the rate of matrix products: "
        f"{result['tokens_per_second_by_matmul_rate']:,.0f} tokens/s",
        "",
        "Memory",
    ]
    items = [(name, memory[name]) for name in ("weights", "gradients", "optimizer")]
    items += [(f"kept: {name}", size) for name, size in memory["activations"].items() if size]
    items += [("logits", memory["logits"]), ("peak", memory["peak"])]
    lines += [f"  {name:<28}{human_bytes(size):>12}" for name, size in items]
    lines[-1] += f"  in the {memory['moment']}; the device has {device['memory']} GiB"
    fits = f"  the largest micro-batch that fits: {result['largest_batch']}"
    none_fits = f"  not even one sequence fits a {device['name']}"
    lines.append(fits if result["largest_batch"] else none_fits)
    return "\n".join(lines)


def main(arguments: Arguments) -> None:
    result = Estimate(*plan(arguments)).result()
    print(json.dumps(result, indent=2) if arguments.json else table(result))


if __name__ == "__main__":
    from gpt2.common.cli import run_tool

    run_tool(main, Arguments)
