"""RMSNorm (our QuickNorm), alone or with the residual addition before it.

For each row x of width C, with dy the gradient of y and g = dy * weight:

    rstd = 1 / sqrt(mean(x^2) + eps)          n = x * rstd          y = n * weight

    dx = rstd * (g - n * mean(g * n))         dweight = sum over rows of dy * n

`add_rms_norm` computes x = branch + residual first and returns it too. It adds the gradient of that
output to dx, which is then the gradient of both branch and residual.

Bytes moved, least possible and as done, for N rows of C values in the tensors' own sizes (plus 4 N
for rstd, and C per program for the weight, which comes from the cache):

    forward    read x; write y               add: read branch, residual; write y, x
    backward   read dy, x; write dx          add: read dy, x, dx around the norm; write dx

Precision: rstd and all sums are float32, whatever the inputs. `kernels._norm.kernels` describes how
the work is split over programs.

Source: Zhang and Sennrich, Root mean square layer normalization (arXiv 1910.07467).
"""

import torch
from torch import Tensor

from kernels._norm.operators import norm


def rms_norm_reference(
    x: Tensor, weight: Tensor, eps: float = 1e-6, *, dtype: torch.dtype | None = None
) -> Tensor:
    """RMSNorm in plain PyTorch, in the dtype of x or float32, the wider: the specification."""
    wide = torch.promote_types(x.dtype, torch.float32)
    n = x.to(wide) * torch.rsqrt(x.to(wide).square().mean(-1, keepdim=True) + eps)
    return (n * weight).to(x.dtype if dtype is None else dtype)


def add_rms_norm_reference(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6,
    *, dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Residual addition and RMSNorm in plain PyTorch: the specification."""
    total = (x + residual).to(residual.dtype)
    return rms_norm_reference(total, weight, eps, dtype=dtype or x.dtype), total


def rms_norm(
    x: Tensor, weight: Tensor, eps: float = 1e-6, *, dtype: torch.dtype | None = None
) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight, over the last axis.

    Args:
        x: (..., C), float16, bfloat16 or float32, C at most 65536. Rows are read in place as long
            as their elements are neighbours and one stride leads from row to row; else x is copied.
        weight: (C,), of any of these dtypes.
        eps: added to the mean square.
        dtype: dtype of y, by default that of x. With a float32 residual stream under autocast, ask
            for the dtype of the next linear layer, which then has nothing to cast.

    Returns:
        y: x's shape, contiguous. The backward gives dx in the dtype of x and dweight in that of
        weight, which is skipped when the weight is frozen; it gives the same bits every time.

    Raises:
        ValueError: a shape, dtype, device or eps that the kernels cannot take.

    Source:
        Zhang and Sennrich, Root mean square layer normalization, arXiv 1910.07467.
    """
    y: Tensor = norm("rms_norm", x, None, weight, None, eps, False, dtype)
    return y


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6,
    *, dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Add x to the residual stream and norm the sum: (rms_norm(x + residual), x + residual).

    Args:
        x: (..., C), the output of a branch, float16, bfloat16 or float32.
        residual: the residual stream, x's shape; its dtype may differ (float32 under autocast).
        weight, eps, dtype: as in `rms_norm`.

    Returns:
        y, and the sum in the dtype of residual. The sum is formed in float32 and rounded once, and
        the rounded sum is normed. Both outputs take gradients; one pass computes dx and dresidual.

    Raises:
        ValueError: a shape, dtype, device or eps that the kernels cannot take.

    Source:
        As `rms_norm`.
    """
    y, total = norm("add_rms_norm", x, residual, weight, None, eps, False, dtype)
    return y, total
