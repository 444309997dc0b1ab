"""The next token of one text by `torch.compile`, on a CPU.

A layer is compiled once for all of them, and so is the output head, both for any length. They read
weights of 16 bits as they are stored (`gpt2.layers.linear`). There is no backward.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gpt2.cache import Chunk
from gpt2.layers import linear

Streams = tuple[Tensor, Tensor | None]


class CompiledNextToken:
    """The parts of a model that one token passes, compiled when they are first called."""

    def __init__(self) -> None:
        self._layer = torch.compile(_forward, fullgraph=True)
        self.head = torch.compile(linear, fullgraph=True)

    def layer(self, layer: Any, x: Tensor, branch: Tensor | None, chunk: Chunk) -> Streams:
        """Compute `layer.forward_fused(x, branch, chunk)` for a chunk of one token."""
        if branch is None and layer.pre_norm:
            branch = torch.zeros_like(x)  # as later layers have one, so that one code serves all
        kv, mask = chunk.reserve(layer.attn)
        torch._dynamo.maybe_mark_dynamic(kv, 1)
        if mask is not None:
            torch._dynamo.maybe_mark_dynamic(mask, 3)
        streams: Streams = self._layer(layer, x, branch, kv, mask)
        return streams


def _forward(
    layer: Any, x: Tensor, branch: Tensor | None, kv: Tensor, mask: Tensor | None
) -> Streams:
    streams: Streams = layer.forward_fused(x, branch, Reserved(kv, mask))
    return streams


@dataclass(frozen=True)
class Reserved:
    """What one token sees in one layer, as tensors alone: a `Chunk` for a compiled layer.

    Attributes:
        kv: keys and values (B, S, 2, H, D); the last are those of the token, not written yet.
        mask: (B, 1, 1, S), True where it may see a key; None if it sees all.
    """

    kv: Tensor
    mask: Tensor | None
    last: ClassVar = False

    def append(self, attention: nn.Module, kv: Tensor) -> tuple[Tensor, Tensor | None]:
        """Write the token's keys and values (B, 1, 2, H, D), and return all and the mask."""
        self.kv[:, -1:] = kv
        return self.kv, self.mask
