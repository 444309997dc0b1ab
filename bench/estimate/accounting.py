"""Bytes moved and memory held by a training step, with one kernel exchanged at a time.

    python -m bench.estimate.accounting

Exact accounting by `bench.estimate` for GPT-2 small in bf16, no measurement. Operators are eager:
each reads its inputs from memory and writes its outputs there.
"""

from bench.estimate.__main__ import Arguments, plan
from bench.estimate.roofline import Estimate
from bench.harness import markdown

STEPS: dict[str, dict[str, str]] = {
    "PyTorch's kernels, attention as masked matrix products": {"attn": "naive"},
    "PyTorch's kernels, attention by SDPA": {},
    "... with our attention": {"attn": "triton"},
    "... with our norms": {"norm_kernel": "triton"},
    "... with our GELU": {"mlp_kernel": "triton"},
    "... with our head and loss": {"loss_kernel": "triton"},
    "all of ours": {"attn": "triton", "kernels": "triton"},
}


def table() -> list[str]:
    """The table in Markdown."""
    lines = []
    for name, choice in STEPS.items():
        arguments = Arguments(preset="gpt2", batch_size=16, dtype="bf16", **choice)  # type: ignore[arg-type]
        result = Estimate(*plan(arguments)).result()
        moved = sum(part["bytes"] for part in result["parts"]) / 1e9
        lines.append([name, f"{moved:.1f}", f"{result['memory']['peak'] / 2**30:.2f}"])
    return markdown.table(["one step", "GB moved", "peak memory, GiB"], lines)


if __name__ == "__main__":
    print("\n".join(table()))
