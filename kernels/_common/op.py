"""Register a kernel launcher as a PyTorch operator.

`torch.library.define` + `impl` + a fake costs about half of what `torch.library.custom_op` adds to
every call, and gives the same guarantees: `torch.compile(fullgraph=True)` sees one opaque node,
`torch.library.opcheck` can examine it, and a CUDA graph can capture it.
"""

from collections.abc import Callable
from typing import Any

import torch

NAMESPACE = "gpt2_triton"


def register_op(
    op: str, fake: Callable[..., Any], mutates: tuple[str, ...] = ()
) -> Callable[[Callable[..., Any]], Any]:
    """Decorate a launcher: define an operator and return it in the launcher's place.

    Args:
        op: name of the operator; its schema follows from the annotations of the launcher.
        fake: same signature, allocates the outputs (shape, dtype, strides) and computes nothing.
        mutates: names of the arguments that the launcher writes to.

    Returns:
        A decorator that gives the `torch._ops.OpOverload`, called like the launcher.
    """

    def register(launcher: Callable[..., Any]) -> Any:
        name = f"{NAMESPACE}::{op}"
        torch.library.define(name, torch.library.infer_schema(launcher, mutates_args=mutates))
        torch.library.impl(name, ("cpu", "cuda"), launcher)
        torch.library.register_fake(name, fake)
        return getattr(getattr(torch.ops, NAMESPACE), op).default

    return register
