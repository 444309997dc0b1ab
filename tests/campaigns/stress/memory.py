"""Memory with guards on both sides, for the tensors that a kernel reads and for those it writes.

Every byte that belongs to no element is 0xFF, which is NaN in each floating-point format and -1 in
an integer: an element read from there spoils the result, and one written there is seen. Inputs are
compared with what they were; outputs begin as 0xFF too, so that an element that no kernel writes
shows.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

FILL = 0xFF
# Bytes on each side: as many as the tensor has, within these bounds. Multiples of every alignment
# that a kernel may rely on.
LEAST_MARGIN, LARGEST_MARGIN = 4096, 65536


@dataclass(frozen=True)
class _Block:
    """Bytes that must stay as they were, but for the elements that `free` views in them."""

    name: str
    data: Tensor
    before: Tensor
    free: Callable[[Tensor], Tensor] | None


class Memory:
    """The guarded memory of one case, filled with a byte until it is written.

    Without guards, tensors take the room that they need and nothing is compared: for a tool that
    watches the memory itself.
    """

    def __init__(self, device: torch.device, guarded: bool = True, fill: int = FILL) -> None:
        self.device = device
        self.guarded = guarded
        self.fill = fill
        self._blocks: list[_Block] = []

    def place(self, values, strides, offset, name, *, kept=True):
        """Lay `values` out with these strides, `offset` elements after an aligned address.

        Along an axis of stride 0, the first element counts. With `kept`, the tensor itself must
        stay as it is, and not only what lies around it.
        """
        last = sum((size - 1) * stride for size, stride in zip(values.shape, strides, strict=True))
        length = offset + last + 1 if values.numel() else offset
        data, margin = self._allocate(length * values.element_size(), self.device)

        def view(of: Tensor) -> Tensor:
            flat = of[margin : margin + length * values.element_size()].view(values.dtype)
            return flat.as_strided(values.shape, strides, flat.storage_offset() + offset)

        one_of_each = tuple(slice(1) if stride == 0 else slice(None) for stride in strides)
        view(data)[one_of_each].copy_(values[one_of_each])
        self._watch(name, data, None if kept else view)
        return view(data)

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Give guards to the tensors that the launchers allocate inside the block, too."""
        if not self.guarded:
            yield
            return

        def guarded(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
            def call(*args: Any, **kwargs: Any) -> Tensor:
                made = make(*args, **kwargs)
                # The interpreter makes empty tensors for itself.
                return self._output(made) if made.numel() else made

            return call

        with (
            patch.object(torch, "empty", guarded(torch.empty)),
            patch.object(torch, "empty_like", guarded(torch.empty_like)),
            patch.object(Tensor, "new_empty", guarded(Tensor.new_empty)),
        ):
            yield

    def check(self) -> None:
        """Assert that inputs are unchanged, and that nothing was written around a tensor."""
        for block in self._blocks:
            now = block.data.clone()
            if block.free is not None:
                block.free(now).copy_(block.free(block.before))
            if not torch.equal(now, block.before):
                places = (now != block.before).nonzero()
                raise AssertionError(
                    f"{block.name}: {len(places)} bytes were written that are not the kernel's, "
                    f"from byte {int(places[0])} of {len(now)} on"
                )

    def _output(self, like: Tensor) -> Tensor:
        size = like.numel() * like.element_size()
        data, margin = self._allocate(size, like.device)
        name = f"around an output {tuple(like.shape)} {like.dtype}"
        self._watch(name, data, lambda of: of[margin : margin + size])
        return data[margin : margin + size].view(like.dtype).view(like.shape)

    def _allocate(self, size: int, device: Any) -> tuple[Tensor, int]:
        """Return `size` bytes between guards, and where they begin."""
        margin = min(-(-size // LEAST_MARGIN) * LEAST_MARGIN, LARGEST_MARGIN) * self.guarded
        length = margin + size + margin
        return torch.full((length,), self.fill, dtype=torch.uint8, device=device), margin

    def _watch(self, name: str, data: Tensor, free: Callable[[Tensor], Tensor] | None) -> None:
        if self.guarded:
            self._blocks.append(_Block(name, data, data.clone(), free))
