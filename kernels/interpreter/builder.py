"""The operations of Triton's language on whole groups of programs.

Triton's semantic layer checks types, inserts casts and broadcasts, and asks a builder for what is
left. This one computes it: each method is one operation of all programs of a group at once. What it
does not define is refused by name.
"""

import functools
from collections.abc import Callable
from typing import Any, NoReturn

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder, InterpreterOptions

from kernels.interpreter.descriptors import DescriptorBuilder
from kernels.interpreter.memory import Memory
from kernels.interpreter.values import (
    MASKS,
    TORCH,
    Handle,
    Unsupported,
    memory_dtype,
    torch_dtype,
    wrapped,
)

# More elements than this in one value of a group cut the group: 4 MiB of float32, which the caches
# of a CPU hold.
LARGEST_VALUE = 1 << 20


ATOMICS = {
    "ADD": "add", "FADD": "add", "XCHG": "xchg", "MAX": "amax", "UMAX": "amax", "MIN": "amin",
    "UMIN": "amin",
}  # fmt: skip


class TooLarge(BaseException):
    """A value of a group has too many elements: the group must be cut."""

    def __init__(self, elements: int) -> None:
        self.elements = elements


class Diverged(BaseException):
    """Programs of a group must go different ways: those with equal `ways` (P,) go together."""

    def __init__(self, ways: Tensor) -> None:
        self.ways = ways


def _check_size(shape: torch.Size) -> None:
    """Raise TooLarge if values (L, ...) of several programs have too many elements."""
    if shape[0] > 1 and shape.numel() > LARGEST_VALUE:
        raise TooLarge(shape[1:].numel())


def _elementwise(function: Callable[..., Tensor], result: Any = None) -> Callable[..., Handle]:
    """An operation on values of one type; its result has that type, unless another is given."""

    def operation(self: "GroupBuilder", *operands: Handle) -> Handle:
        dtype = result or operands[0].dtype
        return self.handle(dtype, wrapped(function(*[x.data for x in operands]), dtype))

    return operation


def _on_floats(function: Callable[..., Tensor]) -> Callable[..., Handle]:
    """An elementwise operation whose narrow operands are computed with in float32."""

    def wide(*operands: Tensor) -> Tensor:
        narrow = operands[0].dtype in (torch.float16, torch.bfloat16)
        found = function(*[x.float() for x in operands] if narrow else operands)
        return found.to(operands[0].dtype)

    return _elementwise(wide)


def _compare(function: Callable[..., Tensor]) -> Callable[..., Handle]:
    return _elementwise(function, tl.int1)


def _compare_unsigned(function: Callable[..., Tensor]) -> Callable[..., Handle]:
    """64 bits are held as signed integers: adding half the range keeps their order."""

    def operation(self: "GroupBuilder", lhs: Handle, rhs: Handle) -> Handle:
        a, b = lhs.data, rhs.data
        if a.dtype == torch.int64 and lhs.dtype.name not in MASKS:
            a, b = a ^ torch.iinfo(torch.int64).min, b ^ torch.iinfo(torch.int64).min
        return self.handle(tl.int1, function(a, b))

    return operation


def _unsigned(x: Handle) -> Tensor:
    """The bits of an integer of at most 32 bits as a number of 64."""
    return x.data.long() & ((1 << x.dtype.primitive_bitwidth) - 1)


def _shift_bits_right(x: Tensor, by: Tensor) -> Tensor:
    """Shift zeros in from the left, into signed integers too."""
    lowest = torch.iinfo(x.dtype).min
    return (x >> by) & ~((lowest >> by) << 1) if lowest else x >> by


def _convert(self: "GroupBuilder", x: Handle, to: Any, *others: Any) -> Handle:
    to = to.scalar
    if x.base is not None and x.dtype == tl.int32 and to == tl.int64:
        # The sum of the parts may wrap in 32 bits, and then it is no sum of wide parts.
        lows, highs = zip(x.base.aminmax(), x.block.aminmax(), strict=True)
        if int(lows[0]) + int(lows[1]) >= -(1 << 31) and int(highs[0]) + int(highs[1]) < 1 << 31:
            return Handle(to, base=x.base.long(), block=x.block.long())
    return self.handle(to, wrapped(x.data.to(torch_dtype(to)), to))


class GroupBuilder(DescriptorBuilder, InterpreterBuilder):
    """Compute what the semantic layer asks for, for the programs of `start_group`."""

    def __init__(self) -> None:
        super().__init__()
        debug = triton.knobs.runtime.debug
        # Overflows are computed to be asserted, and assertions are for debugging.
        self.options = InterpreterOptions(debug=debug, sanitize_overflow=debug)
        self.memory = Memory()
        self.programs = torch.zeros(1, 3, dtype=torch.int32)
        self.grid = (1, 1, 1)
        self.turns = 0

    def start_group(self, programs: Tensor, grid: tuple[int, int, int]) -> None:
        """Programs (P, 3) int32 run next, of a grid of this size."""
        self.programs, self.grid, self.turns = programs, grid, 0

    def handle(self, dtype: Any, data: Tensor) -> Handle:
        _check_size(data.shape)
        return Handle(dtype, data)

    # Scalars.

    def _constant(self, dtype: Any, value: Any) -> Handle:
        return Handle(dtype, torch.full((1,), value, dtype=torch_dtype(dtype), device="cpu"))

    def get_null_value(self, dtype: Any) -> Handle:
        return self._constant(dtype.scalar, 0)

    def get_all_ones_value(self, dtype: Any) -> Handle:
        data = torch.full((1,), -1, dtype=torch_dtype(dtype.scalar), device="cpu")
        return Handle(dtype.scalar, wrapped(data, dtype.scalar))

    def create_get_program_id(self, axis: int) -> Handle:
        place = self.programs[:, axis]
        return Handle(tl.int32, place[:1] if bool((place == place[0]).all()) else place)

    def create_get_num_programs(self, axis: int) -> Handle:
        return self._constant(tl.int32, self.grid[axis])

    # Arithmetic.

    create_fadd = _elementwise(torch.add)
    create_fsub = _elementwise(torch.sub)
    create_fmul = _elementwise(torch.mul)
    create_fdiv = create_precise_divf = create_approx_divf = _elementwise(torch.div)
    create_frem = create_srem = _elementwise(torch.fmod)
    create_fneg = _elementwise(torch.neg)
    create_sdiv = _elementwise(lambda a, b: torch.div(a, b, rounding_mode="trunc"))
    create_and = _elementwise(torch.bitwise_and)
    create_or = _elementwise(torch.bitwise_or)
    create_xor = _elementwise(torch.bitwise_xor)
    create_shl = _elementwise(torch.bitwise_left_shift)
    create_ashr = _elementwise(torch.bitwise_right_shift)
    create_lshr = _elementwise(_shift_bits_right)
    create_minsi = create_minimumf = _elementwise(torch.minimum)
    create_maxsi = create_maximumf = _elementwise(torch.maximum)
    create_minnumf = _elementwise(torch.fmin)
    create_maxnumf = _elementwise(torch.fmax)
    create_iabs = create_fabs = _elementwise(torch.abs)

    def _sum(self, lhs: Handle, rhs: Handle, sign: int) -> Handle:
        if lhs.dtype == tl.int1:
            return self.create_xor(lhs, rhs)
        if lhs.dtype.name not in MASKS and len(lhs.shape) > 1:
            a, b = lhs.parts(), rhs.parts()
            if a and b and (len(a[0]) > 1 or len(b[0]) > 1):
                base, block = a[0] + sign * b[0], a[1] + sign * b[1]
                return Handle(lhs.dtype, base=base, block=block, region=lhs.region)
        data = wrapped(torch.add(lhs.data, rhs.data, alpha=sign), lhs.dtype)
        result = self.handle(lhs.dtype, data)
        result.region = lhs.region
        return result

    def create_add(self, lhs: Handle, rhs: Handle) -> Handle:
        return self._sum(lhs, rhs, 1)

    def create_sub(self, lhs: Handle, rhs: Handle) -> Handle:
        return self._sum(lhs, rhs, -1)

    def create_addptr(self, pointer: Handle, offset: Handle) -> Handle:
        if offset.dtype != tl.int64:
            offset = _convert(self, offset, tl.int64)
        return self._sum(pointer, offset, 1)

    def create_mul(self, lhs: Handle, rhs: Handle) -> Handle:
        if lhs.dtype == tl.int1:
            return self.create_and(lhs, rhs)
        if lhs.base is None:
            lhs, rhs = rhs, lhs
        if lhs.base is not None and rhs.base is None:
            one = (slice(None), *[slice(1)] * (rhs.data.dim() - 1))
            if rhs.data.shape[0] == 1 and not any(rhs.data.stride()[1:]):
                by = rhs.data[one]
                return Handle(lhs.dtype, base=lhs.base * by, block=lhs.block * by)
        return self.handle(lhs.dtype, wrapped(lhs.data * rhs.data, lhs.dtype))

    def create_udiv(self, lhs: Handle, rhs: Handle) -> Handle:
        return self._unsigned_division(self.create_sdiv, "//", lhs, rhs)

    def create_urem(self, lhs: Handle, rhs: Handle) -> Handle:
        return self._unsigned_division(self.create_srem, "%", lhs, rhs)

    def _unsigned_division(self, divide: Any, sign: str, lhs: Handle, rhs: Handle) -> Handle:
        if lhs.dtype == tl.uint64 and (bool((lhs.data < 0).any()) or bool((rhs.data < 0).any())):
            raise Unsupported(f"{sign} of uint64 values of 2**63 and more")
        return divide(lhs, rhs)

    def create_minui(self, lhs: Handle, rhs: Handle) -> Handle:
        return self.create_select(self.create_icmpULT(lhs, rhs), lhs, rhs)

    def create_maxui(self, lhs: Handle, rhs: Handle) -> Handle:
        return self.create_select(self.create_icmpUGT(lhs, rhs), lhs, rhs)

    def create_umulhi(self, lhs: Handle, rhs: Handle) -> Handle:
        bits = lhs.dtype.primitive_bitwidth
        if bits > 32:
            raise Unsupported("tl.umulhi of 64-bit integers")
        high = (_unsigned(lhs) * _unsigned(rhs) >> bits) & ((1 << bits) - 1)
        return self.handle(lhs.dtype, high.to(torch_dtype(lhs.dtype)))

    def create_fma(self, x: Handle, y: Handle, z: Handle) -> Handle:
        # Rounded once: the product is exact in twice the width.
        total = x.data.double() * y.data.double() + z.data.double()
        return self.handle(z.dtype, total.to(z.data.dtype))

    def create_clampf(self, x: Handle, low: Handle, high: Handle, propagate_nan: Any) -> Handle:
        data = torch.fmin(torch.fmax(x.data, low.data), high.data)
        if "ALL" in str(propagate_nan):
            data = torch.where(x.data.isnan(), x.data, data)
        return self.handle(x.dtype, data)

    for _name in ("cos", "sin", "exp", "exp2", "log", "log2", "sqrt", "rsqrt", "erf"):
        vars()[f"create_{_name}"] = _on_floats(getattr(torch, _name))
    create_precise_sqrt = _on_floats(torch.sqrt)
    create_floor = _elementwise(torch.floor)
    create_ceil = _elementwise(torch.ceil)

    # Comparisons; `O` and `U` are what they give for NaN.

    create_icmpSLE = create_fcmpOLE = _compare(torch.le)
    create_icmpSLT = create_fcmpOLT = _compare(torch.lt)
    create_icmpSGE = create_fcmpOGE = _compare(torch.ge)
    create_icmpSGT = create_fcmpOGT = _compare(torch.gt)
    create_icmpULE = _compare_unsigned(torch.le)
    create_icmpULT = _compare_unsigned(torch.lt)
    create_icmpUGE = _compare_unsigned(torch.ge)
    create_icmpUGT = _compare_unsigned(torch.gt)
    create_icmpEQ = create_fcmpOEQ = _compare(torch.eq)
    create_icmpNE = create_fcmpUNE = _compare(torch.ne)

    def create_select(self, condition: Handle, lhs: Handle, rhs: Handle) -> Handle:
        if isinstance(lhs, _Former) and isinstance(rhs, _Former):
            return _Former(lhs.dtype, self._refuse_former)  # a float's extremum, by two of integers
        if lhs.region is not rhs.region:
            raise Unsupported("tl.where between pointers to two tensors")
        result = self.handle(lhs.dtype, torch.where(condition.data, lhs.data, rhs.data))
        result.region = lhs.region
        return result

    def _refuse_former(self) -> NoReturn:
        raise Unsupported("the result of tl.atomic_max or atomic_min of floats")

    # Conversions.

    create_si_to_fp = create_fp_to_si = create_fp_to_ui = _convert
    create_fp_ext = create_fp_trunc = create_int_cast = _convert

    def create_ui_to_fp(self, x: Handle, to: Any) -> Handle:
        data = x.data
        if x.dtype == tl.uint64:
            data = data.double() + torch.where(data < 0, 2.0**64, 0.0)
        return self.handle(to.scalar, data.to(torch_dtype(to.scalar)))

    def create_fp_to_fp(self, x: Handle, to: Any, rounding: Any) -> Handle:
        if "RTZ" in str(rounding):
            raise Unsupported("fp_downcast_rounding='rtz'")
        return _convert(self, x, to)

    def create_bitcast(self, x: Handle, to: Any) -> Handle:
        to = to.scalar
        if isinstance(x, _Former):
            return _Former(to, x.found)
        if to.is_ptr() or x.dtype.is_ptr():
            return self._cast_pointer(x, to)
        bits = x.data.to(memory_dtype(x.dtype)).view(memory_dtype(to))
        return self.handle(to, wrapped(bits.to(torch_dtype(to)), to))

    def _cast_pointer(self, x: Handle, to: Any) -> Handle:
        if not (to.is_ptr() and x.dtype.is_ptr()):
            raise Unsupported("casts between pointers and integers")
        sizes = [memory_dtype(t.element_ty).itemsize for t in (to, x.dtype)]
        if sizes[0] != sizes[1]:
            raise Unsupported("casts of pointers to elements of another size")
        cast = x.map(lambda data: data)
        cast.dtype, cast.region = to, x.region.cast(to.element_ty)
        return cast

    create_int_to_ptr = create_ptr_to_int = create_bitcast

    # Shapes.

    def create_make_range(self, ret_ty: Any, start: int, stop: int) -> Handle:
        return Handle(tl.int32, torch.arange(start, stop, dtype=torch.int32, device="cpu")[None])

    def create_splat(self, ret_ty: Any, scalar: Handle) -> Handle:
        shape = ret_ty.shape
        data = scalar.data.view(-1, *[1] * len(shape)).expand(-1, *shape)
        return Handle(scalar.dtype, data, region=scalar.region)

    def create_unsplat(self, x: Handle) -> Handle:
        return Handle(x.dtype, x.data.reshape(len(x.data)), region=x.region)

    def create_broadcast(self, x: Handle, shape: list[int]) -> Handle:
        if x.base is not None:
            block = x.block.expand(1, *shape)
            return Handle(x.dtype, base=x.base, block=block, region=x.region)
        return Handle(x.dtype, x.data.expand(-1, *shape), region=x.region)

    def create_expand_dims(self, x: Handle, axis: int) -> Handle:
        return x.map(lambda data: data.unsqueeze(axis + 1))

    def create_trans(self, x: Handle, order: list[int]) -> Handle:
        return x.map(lambda data: data.permute(0, *[axis + 1 for axis in order]))

    def create_reshape(self, x: Handle, shape: list[int], allow_reorder: bool) -> Handle:
        return Handle(x.dtype, x.data.reshape(-1, *shape), region=x.region)

    def create_cat(self, lhs: Handle, rhs: Handle) -> Handle:
        return self.handle(lhs.dtype, torch.cat(self._together(lhs, rhs), 1))

    def create_join(self, lhs: Handle, rhs: Handle) -> Handle:
        return self.handle(lhs.dtype, torch.stack(self._together(lhs, rhs), -1))

    def create_split(self, x: Handle) -> tuple[Handle, Handle]:
        return Handle(x.dtype, x.data[..., 0]), Handle(x.dtype, x.data[..., 1])

    def create_gather(self, x: Handle, places: Handle, axis: int) -> Handle:
        data, index = self._together(x, places)
        return self.handle(x.dtype, data.gather(axis + 1, index.long()))

    def _together(self, *operands: Handle) -> list[Tensor]:
        programs = max(len(x.data) for x in operands)
        return [x.data.expand(programs, *x.data.shape[1:]) for x in operands]

    def create_histogram(self, x: Handle, bins: int, mask: Handle | None) -> Handle:
        data, keep = x.data.long(), torch.ones((), dtype=torch.bool)
        data, keep = torch.broadcast_tensors(data, keep if mask is None else mask.data)
        keep = keep & (data >= 0) & (data < bins)
        counts = torch.zeros(len(data), bins, dtype=torch.int32, device="cpu")
        return Handle(tl.int32, counts.scatter_add_(1, data.clamp(0, bins - 1), keep.int()))

    # Products and sums.

    def create_dot(self, a: Handle, b: Handle, total: Handle, *options: Any) -> Handle:
        programs = max(len(a.data), len(b.data), len(total.data))
        rows, inner, columns = *a.data.shape[-2:], b.data.shape[-1]
        batch = a.data[0].numel() // inner // rows
        _check_size(torch.Size((programs, batch, rows, columns)))
        self.memory.work.flops += 2 * batch * rows * inner * columns * len(self.programs)
        # Products of narrow operands are exact in the wider type, as on a GPU.
        dtype = torch.float64 if total.dtype in (tl.int32, tl.float64) else torch.float32
        product = torch.matmul(a.data.to(dtype), b.data.to(dtype))
        return self.handle(total.dtype, product.add_(total.data).to(torch_dtype(total.dtype)))

    # Memory.

    def create_load(self, pointer: Handle, *options: Any) -> Handle:
        return self.create_masked_load(pointer, None, None)

    def create_masked_load(self, pointer: Handle, mask: Any, other: Any, *options: Any) -> Handle:
        _check_size(pointer.shape)  # before its places are written out
        return self.handle(pointer.get_element_ty(), self.memory.load(pointer, mask, other))

    def create_store(self, pointer: Handle, value: Handle, *options: Any) -> None:
        self.memory.store(pointer, value, None)

    def create_masked_store(self, pointer: Handle, value: Handle, mask: Any, *options: Any) -> None:
        self.memory.store(pointer, value, mask)

    def create_atomic_rmw(
        self, operation: Any, pointer: Handle, value: Handle, mask: Handle, *options: Any
    ) -> Handle:
        name = ATOMICS.get(operation.name)
        if name is None or value.dtype == tl.uint64:
            raise Unsupported(f"tl.atomic_{operation.name.lower()} of {value.dtype}")
        return _Former(value.dtype, self.memory.update(name, pointer, value, mask))

    def create_atomic_load(self, pointer: Handle, mask: Any, *options: Any) -> Handle:
        return self.create_masked_load(pointer, mask, None)

    def create_atomic_store(self, pointer: Handle, value: Handle, mask: Any, *o: Any) -> None:
        self.memory.store(pointer, value, mask)

    # Checks.

    def create_assert(self, condition: Handle, message: str) -> None:
        assert condition.data.all(), message

    def create_assume(self, condition: Handle) -> None:
        self.create_assert(condition, "tl.assume does not hold")

    def create_barrier(self) -> None:
        """All programs of a group are at the same place."""

    def create_print(self, prefix: str, hexadecimal: bool, values: list[Handle], *o: Any) -> None:
        for place, program in enumerate(self.programs.tolist()):
            for value in values:
                shown = value.data[place if len(value.data) > 1 else 0]
                print(tuple(program), prefix, shown.tolist())


class _Former(Handle):
    """What an atomic operation found, which depends on the order of the programs.

    So programs that updated one element, and look at what was there, run one after the other.
    """

    def __init__(self, dtype: Any, found: Callable[[], tuple[Tensor, bool]]) -> None:
        super().__init__(dtype)
        self.found = found

    @property
    def data(self) -> Tensor:
        values, once = self.found()
        if not once:
            if len(values) == 1:
                raise Unsupported("the result of an atomic operation on one element twice")
            raise Diverged(torch.arange(len(values)))
        return values


def _refused(name: str) -> Callable[..., NoReturn]:
    def operation(self: GroupBuilder, *arguments: Any, **options: Any) -> NoReturn:
        raise Unsupported(name.removeprefix("create_"))

    return operation


for _method in dir(InterpreterBuilder):
    inherited = getattr(GroupBuilder, _method) is getattr(InterpreterBuilder, _method)
    if _method.startswith("create_") and inherited:
        setattr(GroupBuilder, _method, _refused(_method))
for _name in TORCH:
    _getter = functools.partialmethod(GroupBuilder._constant, tl.dtype(_name))
    setattr(GroupBuilder, f"get_{_name}", _getter)
