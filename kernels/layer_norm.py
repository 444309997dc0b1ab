"""LayerNorm, alone or with the residual addition before it.

For each row x of width C, with dy the gradient of y and g = dy * weight:

    mean = mean(x)       rstd = 1 / sqrt(mean((x - mean)^2) + eps)       n = (x - mean) * rstd
    y = n * weight + bias

    dx = rstd * (g - mean(g) - n * mean(g * n))
    dweight = sum over rows of dy * n                      dbias = sum over rows of dy

`add_layer_norm` computes x = branch + residual first and returns it too. It adds the gradient of
that output to dx, which is then the gradient of both branch and residual.

Bytes moved, least possible and as done, for N rows of C values in the tensors' own sizes (plus 8 N
for mean and rstd, and 2 C per program for weight and bias, which come from the cache):

    forward    read x; write y               add: read branch, residual; write y, x
    backward   read dy, x; write dx          add: read dy, x, dx around the norm; write dx

The backward also writes and reads one row of partial sums per program, 16 C bytes in all for each
of 3 programs per multiprocessor: 5% of the rest at 20,000 rows in 16 bits, and from the cache.

Precision: the row is in registers, so the variance is computed about the mean, in two steps; mean,
rstd and all sums are float32, whatever the inputs. `kernels._norm.kernels` describes how the work
is split over programs.

Source: Ba, Kiros, Hinton, Layer normalization (arXiv 1607.06450).
"""

import torch
from torch import Tensor

from kernels._norm.operators import norm


def layer_norm_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float = 1e-5,
    *, dtype: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    """LayerNorm in plain PyTorch, in the dtype of x or float32, the wider: the specification."""
    centred = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = centred - centred.mean(-1, keepdim=True)
    n = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    y = n * weight if bias is None else n * weight + bias
    return y.to(x.dtype if dtype is None else dtype)


def add_layer_norm_reference(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float = 1e-5,
    *, dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Residual addition and LayerNorm in plain PyTorch: the specification."""
    total = (x + residual).to(residual.dtype)
    return layer_norm_reference(total, weight, bias, eps, dtype=dtype or x.dtype), total


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float = 1e-5,
    *, dtype: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    """(x - mean(x)) / sqrt(var(x) + eps) * weight + bias, over the last axis.

    Args:
        x: (..., C), float16, bfloat16 or float32, C at most 65536. Rows are read in place as long
            as their elements are neighbours and one stride leads from row to row; else x is copied.
        weight: (C,), of any of these dtypes.
        bias: (C,) in the dtype of weight, or None.
        eps: added to the variance.
        dtype: dtype of y, by default that of x. With a float32 residual stream under autocast, ask
            for the dtype of the next linear layer, which then has nothing to cast.

    Returns:
        y: x's shape, contiguous. The backward gives dx in the dtype of x, dweight and dbias in that
        of weight, which are skipped where frozen; it gives the same bits every time.

    Raises:
        ValueError: a shape, dtype, device or eps that the kernels cannot take.

    Source:
        Ba, Kiros, Hinton, Layer normalization, arXiv 1607.06450.
    """
    y: Tensor = norm("layer_norm", x, None, weight, bias, eps, True, dtype)
    return y


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float = 1e-5,
    *, dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Add x to the residual stream and norm the sum: (layer_norm(x + residual), x + residual).

    Args:
        x: (..., C), the output of a branch, float16, bfloat16 or float32.
        residual: the residual stream, x's shape; its dtype may differ (float32 under autocast).
        weight, bias, eps, dtype: as in `layer_norm`.

    Returns:
        y, and the sum in the dtype of residual. The sum is formed in float32 and rounded once, and
        the rounded sum is normed. Both outputs take gradients; one pass computes dx and dresidual.

    Raises:
        ValueError: a shape, dtype, device or eps that the kernels cannot take.

    Source:
        As `layer_norm`.
    """
    y, total = norm("add_layer_norm", x, residual, weight, bias, eps, True, dtype)
    return y, total
