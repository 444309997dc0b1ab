"""The operators of `kernels.attention`: how its kernels are launched, known to torch.compile.

- `attention_fwd`: o, and the log-sum-exp in base 2, (B, H, T) float32.
- `attention_bwd`: dq, dk, dv; what is not needed comes back empty.
- `attention_qkvpacked_bwd`: the three written into one (B, T, 3, H, D) tensor.

The one-pass backward is the default, by arithmetic and not by measurement. It executes 5 products
and one exponential per score where two passes execute 7 and 2: at width 64 on an H100, where an
exponential takes as long as two products, 7 units of time against 11. Its price is 4 * D / block_n
bytes of float32 atomic updates per score, about 1 TB/s at the speed that we hope for, where the
L2 cache sustains several.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from kernels._attention.kernels import (
    attention_bwd_delta_kernel,
    attention_bwd_dkv_kernel,
    attention_bwd_dq_kernel,
    attention_fwd_kernel,
)
from kernels._attention.tiles import Tile, Tiles, choose_tiles
from kernels._common.launch import architecture, on_device_of
from kernels._common.op import register_op

# Offsets inside a tile are 32-bit, and a tile has at most 128 rows.
MAX_TIME_STRIDE = 2**31 // 128
# What the keys and values of the heads that run together may fill of the L2 cache (50 MB: H100).
L2_BUDGET = 32 << 20
DELTA_ROWS = 32


def _grid(q: Tensor, block: int) -> tuple[int]:
    b, t, h, _ = q.shape
    return (b * h * triton.cdiv(t, block),)


def _sizes(q: Tensor) -> tuple[int, int, int, int]:
    """heads, H, T and group: how many heads at a time share the L2 cache for keys and values."""
    b, t, h, d = q.shape
    return b * h, h, t, max(1, L2_BUDGET // (2 * t * d * q.element_size()))


def _widths(q: Tensor) -> dict[str, int]:
    d = q.shape[-1]
    return {"D": d, "BLOCK_D": max(16, triton.next_power_of_2(d))}


def _options(q: Tensor, tile: Tile, window: int | None, allow_tf32: bool) -> dict[str, Any]:
    return {
        **_widths(q),
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        "WINDOW": window is not None,
        "PRECISION": "tf32" if allow_tf32 else "ieee",
    }


def _narrow(window: int | None, q: Tensor) -> int | None:
    """The window if it hides anything: a wider one would only overflow the kernels' arithmetic."""
    return window if window is not None and window < q.shape[1] else None


def _tiles(q: Tensor) -> Tiles:
    return choose_tiles(architecture(q), q.shape[-1], q.shape[1], q.element_size())


def _fwd_fake(q, k, v, seed, scale, window, dropout_p, allow_tf32):
    b, t, h, _ = q.shape
    return q.new_empty(q.shape), q.new_empty((b, h, t), dtype=torch.float32)


@register_op(
    "attention_fwd(Tensor q, Tensor k, Tensor v, Tensor? seed, float scale, int? window, "
    "float dropout_p, bool allow_tf32) -> (Tensor, Tensor)",
    _fwd_fake,
)
def attention_fwd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seed: Tensor | None,
    scale: float,
    window: int | None,
    dropout_p: float,
    allow_tf32: bool,
) -> tuple[Tensor, Tensor]:
    o, lse = _fwd_fake(q, k, v, seed, scale, window, dropout_p, allow_tf32)
    window = _narrow(window, q)
    tile = _tiles(q).fwd
    if q.numel() > 0:
        with on_device_of(q):
            attention_fwd_kernel[_grid(q, tile.block_m)](
                q, k, v, o, lse, seed,
                *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
                *_sizes(q), scale, window or 0, dropout_p,
                **_options(q, tile, window, allow_tf32),
            )  # fmt: skip
    return o, lse


def _launch_bwd(
    dq: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    seed: Tensor | None,
    scale: float,
    window: int | None,
    dropout_p: float,
    allow_tf32: bool,
    deterministic: bool,
) -> None:
    """Fill dq, and dk with dv: tensors that share their strides; None for what is not wanted."""
    if q.numel() == 0:
        return
    if do.stride(3) != 1 or do.stride(1) >= MAX_TIME_STRIDE:
        do = do.contiguous()
    window = _narrow(window, q)
    tiles = _tiles(q)
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *do.stride()[:3])
    scalars = (*_sizes(q), scale, window or 0, dropout_p)
    delta = torch.empty_like(lse)
    one_pass = dq is not None and dk is not None and not deterministic
    dq_sum = torch.empty(q.shape, device=q.device, dtype=torch.float32) if one_pass else None
    with on_device_of(q):
        if dq is not None and not one_pass:
            attention_bwd_dq_kernel[_grid(q, tiles.dq.block_m)](
                q, k, v, o, do, lse, delta, dq, seed, *strides, *dq.stride()[:2], *scalars,
                **_options(q, tiles.dq, window, allow_tf32),
            )  # fmt: skip
        else:
            attention_bwd_delta_kernel[_grid(q, DELTA_ROWS)](
                o, do, delta, dq_sum, *do.stride()[:3], *_sizes(q),
                **_widths(q), BLOCK_M=DELTA_ROWS,
            )  # fmt: skip
        if dk is not None:
            attention_bwd_dkv_kernel[_grid(q, tiles.dkv.block_n)](
                q, k, v, do, lse, delta, dq_sum, dk, dv, seed, *strides, *dk.stride()[:2], *scalars,
                **_options(q, tiles.dkv, window, allow_tf32),
            )  # fmt: skip
    if dq is not None and dq_sum is not None:
        dq.copy_(dq_sum)


def _bwd_fake(do, q, k, v, o, lse, seed, scale, window, dropout_p, tf32, det, need_dq, need_dkv):
    dq = q.new_empty(q.shape if need_dq else (0,))
    dk, dv = (q.new_empty(q.shape if need_dkv else (0,)) for _ in range(2))
    return dq, dk, dv


@register_op(
    "attention_bwd(Tensor do, Tensor q, Tensor k, Tensor v, Tensor o, Tensor lse, Tensor? seed, "
    "float scale, int? window, float dropout_p, bool allow_tf32, bool deterministic, "
    "bool need_dq, bool need_dkv) -> (Tensor, Tensor, Tensor)",
    _bwd_fake,
)
def attention_bwd(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    *operands, need_dq, need_dkv = args
    dq, dk, dv = _bwd_fake(*args)
    _launch_bwd(
        dq if need_dq else None, dk if need_dkv else None, dv if need_dkv else None, *operands
    )
    return dq, dk, dv


def _qkvpacked_bwd_fake(do, qkv, *args):
    return qkv.new_empty(qkv.shape)


@register_op(
    "attention_qkvpacked_bwd(Tensor do, Tensor qkv, Tensor o, Tensor lse, Tensor? seed, "
    "float scale, int? window, float dropout_p, bool allow_tf32, bool deterministic) -> Tensor",
    _qkvpacked_bwd_fake,
)
def attention_qkvpacked_bwd(do: Tensor, qkv: Tensor, *operands: Any) -> Tensor:
    dqkv = qkv.new_empty(qkv.shape)
    q, k, v = qkv.unbind(2)
    dq, dk, dv = dqkv.unbind(2)
    _launch_bwd(dq, dk, dv, do, q, k, v, *operands)
    return dqkv
