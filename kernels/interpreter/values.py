"""Values of interpreted programs: tensors with a leading axis of programs."""

from typing import Any

import torch
from torch import Tensor

# By the names of Triton's scalar types. Unsigned integers that PyTorch hardly computes with are
# held in a wider type, 64 bits as they are.
TORCH = {
    "int1": torch.bool, "int8": torch.int8, "int16": torch.int16, "int32": torch.int32,
    "int64": torch.int64, "uint8": torch.uint8, "uint16": torch.int32, "uint32": torch.int64,
    "uint64": torch.int64, "fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32,
    "fp64": torch.float64,
}  # fmt: skip
# How their bits are read in memory, and what of the wider type is theirs.
BITS = {"uint16": torch.int16, "uint32": torch.int32, "uint64": torch.int64}
MASKS = {"uint16": 0xFFFF, "uint32": 0xFFFF_FFFF}


class Unsupported(Exception):
    """Something that this interpreter does not do; the message names it."""


def torch_dtype(dtype: Any) -> torch.dtype:
    """The dtype in which values of a scalar Triton type are held."""
    if dtype.name not in TORCH:
        raise Unsupported(f"values of type {dtype}")
    return TORCH[dtype.name]


def memory_dtype(dtype: Any) -> torch.dtype:
    """The dtype in which elements of a scalar Triton type are read and written."""
    return BITS.get(dtype.name, torch_dtype(dtype))


def wrapped(data: Tensor, dtype: Any) -> Tensor:
    """Cut integers that are held in a wider type to their own width."""
    return data & MASKS[dtype.name] if dtype.name in MASKS else data


class Handle:
    """What a `tl.tensor` stands for: (L, *block) values, L programs, or 1 if all have the same.

    Integers and pointers that are the sum of a scalar of each program, `base` (L, 1, ...), and of a
    block that all programs share, `block` (1, *block), are added only when their values are asked
    for: an address seldom is.

    Args:
        dtype: Triton's scalar type; a pointer's values are element numbers in `region`.
        data: the values, unless `base` and `block` are given.
    """

    __slots__ = ("_data", "base", "block", "dtype", "region")

    def __init__(
        self,
        dtype: Any,
        data: Tensor | None = None,
        base: Any = None,
        block: Any = None,
        region: Any = None,
    ) -> None:
        self.dtype = dtype
        self._data: Any = data
        self.base = base
        self.block = block
        self.region = region

    @property
    def data(self) -> Tensor:
        """The values, which must not be changed: handles share them."""
        if self._data is None:
            self._data = self.base + self.block
        values: Tensor = self._data
        return values

    @property
    def shape(self) -> torch.Size:
        if self._data is not None:
            return torch.Size(self._data.shape)
        return torch.broadcast_shapes(self.base.shape, self.block.shape)

    def parts(self) -> tuple[Tensor, Tensor] | None:
        """Base and block whose sum this is, if it is one."""
        if self.base is not None:
            return self.base, self.block
        data = self._data
        if data.shape[0] == 1:
            return data.new_zeros([1] * data.dim()), data
        if all(n == 1 or s == 0 for n, s in zip(data.shape[1:], data.stride()[1:], strict=True)):
            first = (slice(None), *[slice(1)] * (data.dim() - 1))
            return data[first], data.new_zeros(1).expand(1, *data.shape[1:])
        return None

    def map(self, function: Any) -> "Handle":
        """The same values in another shape; `function` keeps the axis of programs."""
        if self._data is None:
            base, block = function(self.base), function(self.block)
            return Handle(self.dtype, base=base, block=block, region=self.region)
        return Handle(self.dtype, function(self._data), region=self.region)

    def get_element_ty(self) -> Any:
        """The type of what a pointer points to, or of the values."""
        return self.dtype.element_ty if self.dtype.is_ptr() else self.dtype

    def set_attr(self, name: str, value: Any) -> None:
        """Hints for the compiler (`tl.multiple_of`) mean nothing here."""
