"""Attention against its reference, for the tests of its kernels."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import kernels._attention.operators
from kernels._attention.tiles import Tile, Tiles
from kernels.attention import attention, attention_reference
from kernels.documents import document_bounds
from kernels.testing import compare
from tests.kernels.fused import randn


def use_tiles(monkeypatch: pytest.MonkeyPatch, block_m: int, block_n: int) -> None:
    tile = Tile(block_m, block_n, 4, 2)
    monkeypatch.setattr(
        kernels._attention.operators, "choose_tiles", lambda *_: Tiles(tile, tile, tile)
    )


def bounds(batch: int, length: int, begins: list[int], device) -> Tensor:
    """Documents that begin at these positions; in each further row one later."""
    first = torch.zeros(batch, length, dtype=torch.bool, device=device)
    for row in range(batch):
        first[row, [begin + row for begin in begins if begin + row < length]] = True
    return document_bounds(first)


def qkv(shape, dtype, device, grad=True):
    return {
        name: randn(*shape, dtype=dtype, device=device).requires_grad_(grad)
        for name in ("q", "k", "v")
    }


def reference(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    return attention_reference(q, k, v, **options)[0]


def check(inputs, *, deterministic, do=None, keep=None, dropout_seed=None, **options):
    """Compare `attention` with its reference on these inputs and options.

    The kernels form dS = P * (dP - delta) from two float32 sums, which are equal where a row sees
    one key; PyTorch's softmax backward subtracts in another order. P = exp(S - L), where the
    backward computes S again as k q^T: whether its sums come out as those of q k^T, to the bit,
    depends on the machine's matrix product, so P has one rounding more at the size of S than
    PyTorch's, which keeps its P.
    """
    do = torch.randn_like(inputs["q"]) if do is None else do
    q, k, v = (x.detach().double() for x in inputs.values())
    scale = q.shape[-1] ** -0.5 if options.get("scale") is None else options["scale"]
    largest_logit = float(scale * torch.einsum("bihd,bjhd->bhij", q, k).abs().max())
    ds = 2 * (1 + largest_logit) * torch.einsum("bihd,bjhd->bhij", do.double(), v).abs().max()
    ds *= scale / (1 - options.get("dropout_p", 0.0))
    return compare(
        partial(attention, deterministic=deterministic, dropout_seed=dropout_seed, **options),
        partial(reference, keep=keep, **options),
        inputs,
        upstream=[do],
        cancelled={
            "dq": float(ds * k.abs().max()),
            "dk": float(ds * q.abs().max()),
            "dv": largest_logit * float(do.abs().max()),
        },
    )
