"""The memory that interpreted programs see: tensors as rows of elements, with a way back."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from kernels.interpreter.values import Handle, memory_dtype, torch_dtype, wrapped

RECORDERS: list[list["Launch"]] = []


class OutOfBounds(Exception):
    """An access outside a tensor, by the program with this place in its group."""

    def __init__(self, message: str, place: int) -> None:
        super().__init__(message)
        self.place = place


def row_of(tensor: Tensor) -> Tensor:
    """All from a tensor's first element to its last, as one row in the same memory."""
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    # A tensor of its own on the same storage: autograd sees no change, as on a GPU.
    row = torch.empty(0, dtype=tensor.dtype, device="cpu")
    length = last + 1 if tensor.numel() else 0
    return row.set_(tensor.untyped_storage(), tensor.storage_offset(), (length,), (1,))


class Region:
    """A tensor argument of a launch: its elements, from the first to the last, as one row.

    Args:
        name: of the argument, for messages.
        tensor: on the CPU, of any strides; what lies between its elements belongs to the row.
        dtype: Triton's type of an element.
    """

    def __init__(self, name: str, tensor: Tensor, dtype: Any) -> None:
        self.name = name
        self.dtype = dtype
        self.row = row_of(tensor).view(memory_dtype(dtype))

    def cast(self, dtype: Any) -> "Region":
        """The same memory, as elements of another type of the same size."""
        region = copy(self)
        region.dtype, region.row = dtype, self.row.view(memory_dtype(dtype))
        return region


@dataclass
class Launch:
    """The work of one kernel launch: what its programs asked for, before any cache.

    Bytes are counted by the name of the argument that they belong to; masked lanes do not count.
    """

    kernel: str
    programs: int = 0
    flops: int = 0
    """Floating-point operations of tl.dot: two for each product that is added up."""
    loaded: Counter[str] = field(default_factory=Counter)
    stored: Counter[str] = field(default_factory=Counter)
    updated: Counter[str] = field(default_factory=Counter)
    """Bytes of atomic operations."""

    def add(self, other: "Launch") -> None:
        """Add the work of another group of programs."""
        self.flops += other.flops
        for mine, its in (
            (self.loaded, other.loaded), (self.stored, other.stored), (self.updated, other.updated)
        ):  # fmt: skip
            mine.update(its)


@contextmanager
def record_work() -> Iterator[list[Launch]]:
    """Record the work of every launch of the block that ends without an error, in order."""
    launches: list[Launch] = []
    RECORDERS.append(launches)
    try:
        yield launches
    finally:
        RECORDERS.pop()  # by place, as equal lists may be nested


class Memory:
    """Loads and stores of a group of programs, with a journal by which stores are taken back."""

    def __init__(self) -> None:
        self.journal: list[tuple[Tensor, Any, Tensor]] = []
        self.size = 1
        """Programs of the group."""
        self.work = Launch("")
        """What the group has done so far."""
        self.recording = bool(RECORDERS)

    def undo(self, length: int = 0) -> None:
        """Take back all that was written since the journal had this length."""
        while len(self.journal) > length:
            row, places, values = self.journal.pop()
            row[places] = values

    def load(self, pointer: Handle, mask: Handle | None, other: Handle | None) -> Tensor:
        """Read elements; lanes that are masked off give `other`, or zero."""
        region = pointer.region
        mask = None if mask is None or mask.data.all() else mask
        if self.recording:
            self._count(self.work.loaded, pointer, mask)
        view = None if mask else self._view(pointer, "load")
        if view is not None:
            values = view[0][view[1]]
        else:
            places = pointer.data
            if mask:
                places, keep = torch.broadcast_tensors(places, mask.data)
                if not keep.any():  # the tensor may have no element to read instead
                    dtype = torch_dtype(region.dtype)
                    fill = torch.zeros((), dtype=dtype) if other is None else other.data
                    return fill.expand(torch.broadcast_shapes(places.shape, fill.shape))
                places = torch.where(keep, places, 0)
            self._check("load", region, places)
            values = region.row.index_select(0, places.reshape(-1)).view(places.shape)
        values = wrapped(values.to(torch_dtype(region.dtype)), region.dtype)
        if mask:
            fill = values.new_zeros(()) if other is None else other.data
            values = torch.where(mask.data, values, fill)
        return values

    def store(self, pointer: Handle, values: Handle, mask: Handle | None) -> None:
        """Write elements where the mask is set."""
        row, places, data = self._target("store", self.work.stored, pointer, values, mask)
        self.journal.append((row, places, row[places]))
        row[places] = data

    def update(
        self, name: str, pointer: Handle, values: Handle, mask: Handle | None
    ) -> Callable[[], tuple[Tensor, bool]]:
        """Let elements take part in an atomic operation, as often as they occur.

        Args:
            name: "add", "amin", "amax" or "xchg".
            pointer: places of the elements.
            values: the other operands.
            mask: False where nothing happens.

        Returns:
            A function that gives what was there before, (P, ...) and zero under the mask, and
            whether no element occurred twice: else it is not what each program found.
        """
        region, dtype = pointer.region, torch_dtype(pointer.region.dtype)
        row, places, data = self._target("update", self.work.updated, pointer, values, mask, True)
        before = row[places]
        self.journal.append((row, places, before))
        if name == "add":
            row.index_add_(0, places, data)
        else:
            once, which = places.unique(return_inverse=True)
            now, data = (wrapped(x.to(dtype), region.dtype) for x in (row[once], data))
            if name == "xchg":
                now[which] = data
            else:
                now.scatter_reduce_(0, which, data, name)
            row[once] = now.to(row.dtype)
        programs = self.size

        def found() -> tuple[Tensor, bool]:
            shapes = pointer.shape, values.shape, (programs, *pointer.shape[1:])
            shape = torch.broadcast_shapes(*shapes)
            keep = torch.ones(shape, dtype=torch.bool) if mask is None else mask.data.expand(shape)
            known = before.new_zeros(shape).masked_scatter_(keep, before)
            known = wrapped(known.to(dtype), region.dtype)
            return known, len(places.unique()) == len(places)

        return found

    def _target(self, action, counter, pointer, values, mask, atomic=False):
        """What to write to: a row of elements or of blocks, places in it, and the values."""
        mask = None if mask is None or mask.data.all() else mask
        if self.recording:
            self._count(counter, pointer, mask)
        dtype = pointer.region.row.dtype
        if not atomic and not mask:
            view = self._view(pointer, action)
            if view is not None:
                shape = (len(view[1]), *values.data.shape[1:])
                if values.data.shape[0] in (1, shape[0]):
                    return *view, values.data.to(dtype).expand(shape)
        tensors = [pointer.data, values.data] + ([mask.data] if mask else [])
        if atomic:  # once for each program, where all of them do the same, too
            tensors[0] = tensors[0].expand(self.size, *tensors[0].shape[1:])
        places, data, *keep = torch.broadcast_tensors(*tensors)
        if keep:
            programs = keep[0].nonzero()[:, 0]
            places, data = places[keep[0]], data[keep[0]]
            self._check(action, pointer.region, places, programs)
        else:
            self._check(action, pointer.region, places)
        return pointer.region.row, places.reshape(-1), data.reshape(-1).to(dtype)

    def _view(self, pointer: Handle, action: str) -> tuple[Tensor, Tensor] | None:
        """The blocks of a pointer as one row of overlapping blocks, and the places of its own.

        Where the same strides lead through the blocks of all programs, they are copied as blocks.
        """
        if pointer.base is None or pointer.block is None or not pointer.block.numel():
            return None
        block, row = pointer.block[0], pointer.region.row
        first = block.reshape(-1)[0]
        expected, strides = first, []
        for axis, size in enumerate(block.shape):
            stride = int(block.select(axis, 1).reshape(-1)[0] - first) if size > 1 else 0
            strides.append(stride)
            steps = torch.arange(size, device="cpu").mul_(stride)
            expected = expected + steps.view([-1 if a == axis else 1 for a in range(block.dim())])
        if min(strides) < 0 or not torch.equal(expected.expand(block.shape), block):
            return None
        places = pointer.base.reshape(-1) + first
        extent = int(block.reshape(-1)[-1] - first)
        self._check(action, pointer.region, places)
        self._check(action, pointer.region, places + extent)
        return row.as_strided((len(row) - extent, *block.shape), (1, *strides)), places

    def _check(self, action, region, places, programs=None) -> None:
        """Raise OutOfBounds unless all places lie in the region."""
        if not places.numel():
            return
        low, high = places.aminmax()
        if low >= 0 and high < len(region.row):
            return
        outside = ((places < 0) | (places >= len(region.row))).nonzero()[0]
        program = outside[0] if programs is None else programs[outside[0]]
        raise OutOfBounds(
            f"{action} outside {region.name}: element {int(places[tuple(outside)])} of "
            f"{len(region.row)}",
            int(program) if len(places) > 1 or programs is not None else 0,
        )

    def _count(self, counter: Counter[str], pointer: Handle, mask: Handle | None) -> None:
        shape = pointer.shape
        if mask:
            lanes = int(mask.data.sum())
            lanes *= torch.broadcast_shapes(shape, mask.data.shape).numel() // mask.data.numel()
            shape = torch.broadcast_shapes(shape, mask.data.shape)
        else:
            lanes = shape.numel()
        copies = self.size if shape[0] == 1 else 1
        counter[pointer.region.name] += lanes * copies * pointer.region.row.element_size()


def pointer_to(name: str, tensor: Tensor, dtype: Any) -> Handle:
    """A scalar pointer to the first element of a tensor."""
    start = torch.zeros(1, dtype=torch.int64, device="cpu")
    return Handle(tl.pointer_type(dtype), start, region=Region(name, tensor, dtype))
