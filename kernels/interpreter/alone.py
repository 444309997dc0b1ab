"""Triton's own interpreter, one program after another, held to the tensors of a launch.

It works on addresses, and by itself would read and write any memory of the process.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder

from kernels.interpreter.memory import OutOfBounds, row_of
from kernels.interpreter.values import Unsupported


class _Argument(NamedTuple):
    name: str
    first: int
    """Address of the first byte."""
    end: int
    """Address after the last."""


_run = InterpretedFunction.run
_arguments: list[_Argument] | None = None
"""Of the launch that runs; None once it makes pointers from integers, which may lead anywhere."""


def run_alone(kernel: Any, arguments: dict[str, Any], args: Any, grid: Any, kwargs: Any) -> None:
    """Run all programs of a grid; if one fails, the tensors are what they were before."""
    global _arguments
    rows = {name: row_of(x) for name, x in _tensors("", arguments)}
    # As arrays, since what a kernel allocates by PyTorch is measured in this interpreter.
    contents = [row.view(torch.uint8).numpy() for row in rows.values()]
    before = [(content, content.copy()) for content in contents]
    _arguments = [
        _Argument(name, row.data_ptr(), row.data_ptr() + row.nbytes) for name, row in rows.items()
    ]
    try:
        _run(kernel, *args, grid=grid, warmup=False, **kwargs)
    except BaseException:
        for content, values in before:
            content[:] = values
        raise


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of an argument, by name."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _tensors(key, part)
    elif isinstance(value, tuple):
        for i, part in enumerate(value):
            yield from _tensors(f"{name}[{i}]", part)
    elif isinstance(base := getattr(value, "base", None), Tensor):
        yield name, base  # of a descriptor, or reinterpreted
    elif isinstance(value, Tensor):
        if value.device.type != "cpu":
            raise Unsupported(f"{name}: a tensor on {value.device}, not on the CPU")
        yield name, value


def _check(action: str, pointers: Any, mask: Any) -> None:
    """Raise OutOfBounds unless all elements lie in arguments of the launch."""
    if _arguments is None:
        return
    places = pointers.data.astype("int64")
    if mask is not None:
        places = places[mask.data.astype(bool) | (places != places)]
    size = max(pointers.get_element_ty().primitive_bitwidth // 8, 1)
    inside = places != places
    for argument in _arguments:
        inside = inside | (places >= argument.first) & (places + size <= argument.end)
    if not inside.all():
        place = int(places[~inside][0])
        near = min(_arguments, key=lambda x: max(x.first - place, place - x.end))
        raise OutOfBounds(
            f"{action} outside all tensors, nearest {near.name}: byte {place - near.first} of "
            f"{near.end - near.first}",
            0,
        )


def _checked(name: str, action: str, pointers: int, mask: int | None) -> Callable[..., Any]:
    """A method of Triton's builder behind a check of the arguments with these numbers."""
    original = getattr(InterpreterBuilder, name)

    def method(*args: Any, **kwargs: Any) -> Any:
        _check(action, args[pointers], None if mask is None else args[mask])
        return original(*args, **kwargs)

    return method


def _to_pointer(builder: Any, *args: Any) -> Any:
    global _arguments
    _arguments = None
    return builder.create_bitcast(*args)


_dot = InterpreterBuilder.create_dot


def _checked_dot(builder: Any, a: Any, b: Any, *options: Any) -> Any:
    if tl.bfloat16 in (a.dtype, b.dtype):
        raise Unsupported("Triton's interpreter multiplies the bits of bfloat16 as integers")
    return _dot(builder, a, b, *options)


METHODS = {
    "create_masked_load": _checked("create_masked_load", "load", 1, 2),
    "create_masked_store": _checked("create_masked_store", "store", 1, 3),
    "create_atomic_rmw": _checked("create_atomic_rmw", "update", 2, 4),
    "create_atomic_cas": _checked("create_atomic_cas", "update", 1, None),
    "create_int_to_ptr": _to_pointer,
    "create_dot": _checked_dot,
}
"""What Triton's builder does while `run_alone` may be called."""
