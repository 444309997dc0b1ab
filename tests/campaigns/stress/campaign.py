"""Every operator of `kernels` on random shapes, strides and values.

Without a GPU the kernels run in `kernels.interpreter`.
"""

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st

from tests.campaigns.options import Options
from tests.campaigns.search import ALL_PHASES, search, search_each
from tests.campaigns.stress import attention, losses, norms, pointwise
from tests.campaigns.stress.case import Case
from tests.campaigns.stress.draw import Draw
from tests.campaigns.stress.memory import Memory

OPERATORS: dict[str, Callable[[Draw], Case]] = {
    **attention.OPERATORS, **norms.OPERATORS, **pointwise.OPERATORS, **losses.OPERATORS,
}  # fmt: skip
# A few seconds for each operator.
SHORT = {
    "attention": 10, "attention_qkvpacked": 8, "rms_norm": 10, "add_rms_norm": 10,
    "layer_norm": 10, "add_layer_norm": 10, "gelu_tanh": 20, "swiglu": 40, "swiglu_packed": 40,
    "cross_entropy": 20, "linear_cross_entropy": 20,
}  # fmt: skip
LONG_SECONDS = 600


@st.composite
def cases(draw: st.DrawFn, name: str, device: torch.device, guarded: bool = True) -> Case:
    """Draw arguments for an operator."""
    return OPERATORS[name](Draw(draw, Memory(device, guarded)))


def stress(name, budget, seed=0, *, guarded=True, phases=ALL_PHASES):
    """Search for a case in which an operator breaks its contract; see `search` and `Memory`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    examples = cases(name, device, guarded)
    return search(f"stress/{name}", examples, Case.check, budget, seed=seed, phases=phases)


def run(options: Options) -> dict[str, Any]:
    """Stress the operators; return how many cases of each were tried, and how many ways failed."""
    torch.set_num_threads(1)  # sums in the same order on every machine
    results = search_each(options, SHORT, LONG_SECONDS, stress)
    found = {name: {"tried": x.tried, "failed": len(x.failures)} for name, x in results.items()}
    return {"rows": [{"operator": name} | row for name, row in found.items()]}
