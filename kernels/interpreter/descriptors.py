"""Tensor descriptors: blocks of a tensor of several axes, cut at its edges."""

from typing import Any, NamedTuple

import torch
import triton.language as tl

from kernels.interpreter.memory import Memory
from kernels.interpreter.values import Handle, Unsupported


class Descriptor(NamedTuple):
    """A tensor and the shape of the blocks that are read from it or written to it."""

    pointer: Handle
    shape: list[Handle]
    strides: list[Handle]
    block: list[int]
    padding: Any

    def places(self, start: list[Handle]) -> tuple[Handle, Handle]:
        """Pointers to the block that starts at these indices, and which of them exist."""

        def column(x: Handle) -> torch.Tensor:
            return x.data.long().view(-1, *[1] * len(self.block))

        places, inside = column(self.pointer), torch.ones((), dtype=torch.bool)
        for axis, index in enumerate(start):
            steps = torch.arange(self.block[axis], device="cpu")
            shape = [-1 if a == axis else 1 for a in range(len(self.block))]
            along = column(index) + steps.view(shape)
            places = places + along * column(self.strides[axis])
            inside = inside & (along >= 0) & (along < column(self.shape[axis]))
        pointer = Handle(self.pointer.dtype, places, region=self.pointer.region)
        return pointer, Handle(tl.int1, inside)


class DescriptorBuilder:
    """What Triton's semantic layer asks of a builder for descriptors."""

    memory: Memory

    def create_make_tensor_descriptor(
        self, pointer: Handle, shape: list[Handle], strides: list[Handle], block: list[int],
        is_signed: bool, padding: Any,
    ) -> Descriptor:  # fmt: skip
        return Descriptor(pointer, shape, strides, block, padding)

    def create_descriptor_load(self, of: Descriptor, start: list[Handle], *options: Any) -> Handle:
        pointer, inside = of.places(start)
        dtype = pointer.get_element_ty()
        nan = Handle(dtype, torch.tensor(float("nan"))) if "NAN" in str(of.padding) else None
        return Handle(dtype, self.memory.load(pointer, inside, nan))

    def create_descriptor_store(self, of: Descriptor, values: Handle, start: list[Handle]) -> None:
        pointer, inside = of.places(start)
        self.memory.store(pointer, values, inside)

    def create_descriptor_reduce(
        self, kind: Any, of: Descriptor, values: Handle, start: list[Handle]
    ) -> None:
        if kind.name != "ADD":
            raise Unsupported(f"atomic_{kind.name.lower()} of a tensor descriptor")
        pointer, inside = of.places(start)
        self.memory.update("add", pointer, values, inside)
