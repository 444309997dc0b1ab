"""How often kernels that are right leave their error budget, over many seeds.

Random inputs of one shape, in float32. That wrong kernels leave it is tested by the faults that are
planted in `tests/kernels/test_*_mutations.py`.
"""

from typing import Any

import torch
from torch import Tensor

from kernels.attention import attention, attention_reference
from kernels.gelu import gelu_tanh, gelu_tanh_reference
from kernels.layer_norm import layer_norm, layer_norm_reference
from kernels.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_reference
from kernels.testing import Function, Referee
from tests.campaigns.options import Options

SHORT, LONG = 3, 1000
CASES: dict[str, tuple[Function, Function, dict[str, tuple[int, ...]]]] = {
    "attention, 128 positions, width 64": (
        attention,
        lambda **qkv: attention_reference(**qkv)[0],
        dict.fromkeys("qkv", (1, 128, 1, 64)),
    ),
    "layer_norm, 16 x 192": (
        layer_norm, layer_norm_reference, {"x": (16, 192), "weight": (192,), "bias": (192,)},
    ),
    "gelu_tanh, 16 x 192": (gelu_tanh, gelu_tanh_reference, {"x": (16, 192), "bias": (192,)}),
    "linear_cross_entropy, 32 x 64, 500 words": (
        linear_cross_entropy, linear_cross_entropy_reference, {"x": (32, 64), "weight": (500, 64)},
    ),
}  # fmt: skip


def run(options: Options) -> dict[str, Any]:
    """Return for each kernel how many seeds were tried, and at how many it left its budget."""
    torch.set_num_threads(1)  # sums in the same order on every machine
    return {"rows": [_row(name, options) for name in options.chosen(CASES)]}


def _row(name: str, options: Options) -> dict[str, Any]:
    kernel, reference, shapes = CASES[name]
    budget = options.budget(SHORT, LONG, shares=len(options.chosen(CASES)))
    tried, failed, most = 0, 0, 0.0
    while budget.left(tried):
        torch.manual_seed(options.seed + tried)
        inputs: dict[str, Tensor] = {
            key: torch.randn(shape, requires_grad=True) for key, shape in shapes.items()
        }
        if "cross_entropy" in name:
            inputs["targets"] = torch.randint(shapes["weight"][0], shapes["x"][:1])
        found = Referee(reference, inputs).judge(kernel).values()
        tried += 1
        failed += not all(quantity.within for quantity in found)
        most = max(most, *(quantity.share for quantity in found))
    return {
        "kernel": name, "seeds": tried, "failed": failed,
        "largest share of the budget": f"{most:.2f}",
    }  # fmt: skip
