"""Parts of a fused output head and loss that need no Triton.

`kernels.linear_cross_entropy` uses them with our kernel, and gpt2/loss.py, which has to run where
there is no Triton, with PyTorch's softmax.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

ROW_MULTIPLE = 128  # of a chunk, for the sake of the matrix products


def check_head(op: str, x: Tensor, weight: Tensor, targets: Tensor) -> None:
    """Raise ValueError unless x is (N, C), weight (V, C) and targets int64 (N,)."""
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(
            f"{op}: expected x (N, C) and weight (V, C), got {tuple(x.shape)} and "
            f"{tuple(weight.shape)}"
        )
    if targets.shape != x.shape[:1] or targets.dtype != torch.int64:
        raise ValueError(
            f"{op}: expected int64 targets of shape ({len(x)},), got {targets.dtype} "
            f"{tuple(targets.shape)}"
        )


def count_targets(targets: Tensor, ignore_index: int, vocab_size: int) -> Tensor:
    """The number of rows that count, at least 1: a float32 scalar on the device.

    Raises:
        ValueError: on a CPU, a target outside the vocabulary (looking would stall a GPU).
    """
    counted = targets != ignore_index
    if targets.device.type == "cpu":
        wrong = targets[counted & ((targets < 0) | (targets >= vocab_size))]
        if len(wrong):
            raise ValueError(
                f"target {int(wrong[0])} is outside the vocabulary [0, {vocab_size}): "
                "were these tokens made by another tokenizer?"
            )
    return counted.sum(dtype=torch.float32).clamp_(min=1)


def chunk_rows(n: int, row_bytes: int, chunk_bytes: int) -> int:
    """Rows per chunk: as even as the budget allows, in round numbers where it allows many."""
    most = max(1, chunk_bytes // row_bytes)
    if n <= most:
        return max(1, n)
    if most >= ROW_MULTIPLE:
        most -= most % ROW_MULTIPLE
    even = -(-n // -(-n // most))
    return min(most, -(-even // ROW_MULTIPLE) * ROW_MULTIPLE)


def scaled_gradients(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """dx and dw of the mean loss, in the dtypes of the inputs, from what the forward saved.

    dloss holds the loss scale of float16, so that dx meets 1/n and the scale in one float32 number.
    dw is scaled in place, since it is as large as the head. Autograd notices a second use of it by
    its version and refuses it.
    """
    count, *sums = ctx.saved_tensors
    return scaled_sums(ctx, sums, dloss / count)


def scaled_sums(
    ctx: Any, sums: Sequence[Tensor], scale: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """dx and dw, where they are needed, of sums that become them by a scalar on the device."""
    dx, dw = (
        # Not 16 bits times a scalar: a GPU would round the scalar to 16 bits first.
        total.to(torch.promote_types(total.dtype, scale.dtype)).mul_(scale).to(dtype)
        if needed else None
        for total, dtype, needed in zip(sums, ctx.dtypes, ctx.needs_input_grad, strict=False)
    )  # fmt: skip
    return dx, dw
