"""The operators of `kernels.attention`: they launch its kernels and are known to torch.compile.

- `attention_fwd`: o, the log-sum-exp in base 2, (B, H, T) float32, and on request the largest score
  of each row in the same units; q may have fewer positions than k and v, their last ones.
- `attention_bwd`: dq, dk, dv; an empty tensor in place of each that is not needed.
- `attention_qkvpacked_bwd`: the three gradients in one (B, T, 3, H, D) tensor.

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
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels._attention.kernels import (
    attention_bwd_delta_kernel,
    attention_bwd_dkv_kernel,
    attention_bwd_dq_kernel,
    attention_dropout_kernel,
    attention_fwd_kernel,
)
from kernels._attention.tiles import Tile, Tiles, adds_whole_tiles, choose_tiles
from kernels._common.launch import architecture, l2_bytes, on_device_of
from kernels._common.op import register_op

# Offsets inside a tile are 32-bit, and a tile has at most 128 rows.
MAX_TIME_STRIDE = 2**31 // 128
DELTA_ROWS = 32


def _grid(q: Tensor, block: int) -> tuple[int]:
    b, t, h, _ = q.shape
    return (b * h * triton.cdiv(t, block),)


def _sizes(q: Tensor) -> tuple[int, int, int, int]:
    """batch_heads = B * H, H, T, and heads_per_group: keys and values fit half of the L2 cache."""
    b, t, h, d = q.shape
    return b * h, h, t, max(1, l2_bytes(q) // (4 * t * d * q.element_size()))


def _widths(q: Tensor) -> dict[str, int]:
    d = q.shape[-1]
    return {"D": d, "BLOCK_D": max(16, triton.next_power_of_2(d)), "enable_fp_fusion": True}


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


def _narrow(window: int | None, k: Tensor) -> int | None:
    """The window, or None if it hides nothing: a large one would overflow 32-bit positions."""
    return window if window is not None and window < k.shape[1] else None


def _tiles(q: Tensor, documents: Tensor | None, window: int | None, dropout_p: float) -> Tiles:
    problem = architecture(q.device), q.shape[-1], q.shape[1], q.element_size()
    return choose_tiles(*problem, documents is not None, window is not None, dropout_p > 0)


def _allocate_outputs(q: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    b, t, h, _ = q.shape
    lse = q.new_empty((b, h, t), dtype=torch.float32)
    need_max = others[-1]
    return q.new_empty(q.shape), lse, lse.new_empty(lse.shape if need_max else (0,))


@register_op("attention_fwd", _allocate_outputs)
def attention_fwd(
    q: Tensor, k: Tensor, v: Tensor, seed: Tensor | None, documents: Tensor | None,
    scale: float, window: int | None, dropout_p: float, allow_tf32: bool, need_max: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    o, lse, row_max = _allocate_outputs(q, need_max)
    window, shift = _narrow(window, k), k.shape[1] - q.shape[1]
    tile = _tiles(q, documents, window, dropout_p).fwd
    if q.numel() > 0:
        with on_device_of(q):
            attention_fwd_kernel[_grid(q, tile.block_m)](
                q, k, v, o, lse, row_max if need_max else None, seed, documents,
                *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
                *_sizes(q), scale, window or 0, dropout_p, shift,
                **_options(q, tile, window, allow_tf32), SHIFTED=shift > 0,
            )  # fmt: skip
    return o, lse, row_max


def _launch_bwd(
    dq: Tensor | None, dk: Tensor | None, dv: Tensor | None, do: Tensor, q: Tensor, k: Tensor,
    v: Tensor, o: Tensor, lse: Tensor, seed: Tensor | None, documents: Tensor | None, scale: float,
    window: int | None, dropout_p: float, allow_tf32: bool, deterministic: bool,
) -> None:  # fmt: skip
    """Fill dq, and dk with dv: tensors that share their strides; None for what is not wanted."""
    if q.numel() == 0:
        return
    if do.stride(3) != 1 or do.stride(1) >= MAX_TIME_STRIDE:
        do = do.contiguous()
    window = _narrow(window, k)
    tiles = _tiles(q, documents, window, dropout_p)
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *do.stride()[:3])
    scalars = (*_sizes(q), scale, window or 0, dropout_p)
    delta = torch.empty_like(lse)
    one_pass = dq is not None and dk is not None and not deterministic
    dq_sum = torch.empty(q.shape, device=q.device, dtype=torch.float32) if one_pass else None
    dq_sum_tiles = None
    problem = architecture(q.device), q.shape[-1], q.element_size(), documents is not None
    if dq_sum is not None and adds_whole_tiles(*problem):
        block = [1, tiles.dkv.block_m, 1, _widths(q)["BLOCK_D"]]
        dq_sum_tiles = TensorDescriptor.from_tensor(dq_sum, block)
    with on_device_of(q):
        if dq is not None and not one_pass:
            attention_bwd_dq_kernel[_grid(q, tiles.dq.block_m)](
                q, k, v, o, do, lse, delta, dq, seed, documents,
                *strides, *dq.stride()[:2], *scalars,
                **_options(q, tiles.dq, window, allow_tf32),
            )  # fmt: skip
        else:
            attention_bwd_delta_kernel[_grid(q, DELTA_ROWS)](
                o, do, delta, dq_sum, *do.stride()[:3], *_sizes(q),
                **_widths(q), BLOCK_M=DELTA_ROWS,
            )  # fmt: skip
        if dk is not None:
            attention_bwd_dkv_kernel[_grid(q, tiles.dkv.block_n)](
                q, k, v, do, lse, delta, dq_sum, dq_sum_tiles, dk, dv, seed, documents,
                *strides, *dk.stride()[:2], *scalars,
                **_options(q, tiles.dkv, window, allow_tf32),
            )  # fmt: skip
    if dq is not None and dq_sum is not None:
        torch.mul(dq_sum, scale, out=dq)


def _allocate_gradients(q: Tensor, need_dq: bool, need_dkv: bool) -> tuple[Tensor, Tensor, Tensor]:
    dq = q.new_empty(q.shape if need_dq else (0,))
    dk, dv = (q.new_empty(q.shape if need_dkv else (0,)) for _ in range(2))
    return dq, dk, dv


@register_op("attention_bwd", lambda do, q, *others: _allocate_gradients(q, *others[-2:]))
def attention_bwd(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, seed: Tensor | None,
    documents: Tensor | None, scale: float, window: int | None, dropout_p: float, allow_tf32: bool,
    deterministic: bool, need_dq: bool, need_dkv: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dq, dk, dv = _allocate_gradients(q, need_dq, need_dkv)
    _launch_bwd(
        dq if need_dq else None, dk if need_dkv else None, dv if need_dkv else None,
        do, q, k, v, o, lse, seed, documents, scale, window, dropout_p, allow_tf32, deterministic,
    )  # fmt: skip
    return dq, dk, dv


@register_op("attention_qkvpacked_bwd", lambda do, qkv, *_: qkv.new_empty(qkv.shape))
def attention_qkvpacked_bwd(
    do: Tensor, qkv: Tensor, o: Tensor, lse: Tensor, seed: Tensor | None,
    documents: Tensor | None, scale: float, window: int | None, dropout_p: float, allow_tf32: bool,
    deterministic: bool,
) -> Tensor:  # fmt: skip
    dqkv = qkv.new_empty(qkv.shape)
    dq, dk, dv = dqkv.unbind(2)
    q, k, v = qkv.unbind(2)
    _launch_bwd(
        dq, dk, dv, do, q, k, v, o, lse, seed, documents, scale, window, dropout_p, allow_tf32,
        deterministic,
    )  # fmt: skip
    return dqkv


def dropout_mask(seed: Tensor, shape: tuple[int, int, int], dropout_p: float) -> Tensor:
    """Read out the mask that attention draws, for tests.

    Args:
        seed: int64 tensor of one element, as given to `attention`.
        shape: (B, T, H).
        dropout_p: probability of dropping, in [0, 1).

    Returns:
        (B, H, T, T) bool, True where a probability is kept; also above the diagonal.
    """
    b, t, h = shape
    keep = torch.empty((b, h, t, t), dtype=torch.bool, device=seed.device)
    with on_device_of(seed):
        attention_dropout_kernel[(b * h, triton.cdiv(t, 32), triton.cdiv(t, 32))](
            seed, keep, t, dropout_p, BLOCK=32
        )
    return keep
