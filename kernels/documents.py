"""Where the documents of a sequence begin and end, for attention that stays within them."""

import torch
import torch.nn.functional as F
from torch import Tensor


def document_bounds(first: Tensor) -> Tensor:
    """Where the document of each position begins, and where it ends.

    Nothing is read back from the device, so a CUDA graph can do it.

    Args:
        first: (B, T) bool, True at the first position of a document. Position 0 begins one anyway.

    Returns:
        (2, B, T) int32 contiguous: the first position of the document, and the one after its last.
    """
    T = first.shape[1]
    position = torch.arange(T, device=first.device)
    begins = position.masked_fill(~first, 0).cummax(1).values
    following = position.masked_fill(~first, T).flip(1).cummin(1).values.flip(1)
    ends = F.pad(following, (0, 1), value=T)[:, 1:]
    return torch.stack([begins, ends]).int()
