"""Triton's own interpreter, one program after another, held to the tensors of a launch.

It works on addresses, and by itself would read and write any memory of the process. Here the upper
bits of an address, which no memory has, are the number of the argument that it was made from.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter as triton_interpreter
from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder, TensorHandle

from kernels.interpreter.memory import OutOfBounds, row_of
from kernels.interpreter.values import Unsupported

_BITS = 48
"""Of an address; above them stands the argument's number, 0 if there is none."""
_ADDRESS = (1 << _BITS) - 1

_run = InterpretedFunction.run
_rows: dict[str, Tensor] = {}
"""The arguments of the launch that runs."""


def run_alone(kernel: Any, arguments: dict[str, Any], args: Any, grid: Any, kwargs: Any) -> None:
    """Run all programs of a grid; if one fails, the tensors are what they were before."""
    global _rows
    _rows = {name: row_of(x) for name, x in _tensors("", arguments)}
    # As arrays, since what a kernel allocates by PyTorch is measured in this interpreter.
    contents = [row.view(torch.uint8).numpy() for row in _rows.values()]
    before = [(content, content.copy()) for content in contents]
    try:
        _run(kernel, *args, grid=grid, warmup=False, **kwargs)
    except BaseException:
        for content, values in before:
            content[:] = values
        raise
    finally:
        _rows = {}


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


def _convert(arg: Any) -> Any:
    """An argument as a value of the language; the address of a tensor with the tensor's number."""
    value = _convert_plainly(arg)
    if hasattr(arg, "data_ptr"):
        rows = enumerate(_rows.values(), 1)
        here = [(row.nbytes, number) for number, row in rows if row.data_ptr() == arg.data_ptr()]
        value.handle.data |= max(here)[1] << _BITS
    return value


_convert_plainly = triton_interpreter._implicit_cvt


def _addresses(action: str, pointers: Any, mask: Any) -> Any:
    """The memory that pointers lead to.

    Raises:
        OutOfBounds: an element that is not masked lies outside the argument it was made from.
    """
    size = max(pointers.get_element_ty().primitive_bitwidth // 8, 1)
    places = pointers.data & _ADDRESS
    numbers = pointers.data >> _BITS
    for number, (name, row) in enumerate(_rows.items(), 1):
        byte = places.astype("int64") - row.data_ptr()
        outside = (numbers == number) & ((byte < 0) | (byte + size > row.nbytes))
        if mask is not None:
            outside &= mask.data.astype(bool)
        if outside.any():
            raise OutOfBounds(
                f"{action} outside {name}: element {byte[outside][0] / size:.12g} of "
                f"{row.nbytes / size:.12g}",
                0,
            )
    return TensorHandle(places, pointers.dtype)


def _checked(name: str, action: str, pointers: int, mask: int | None) -> Callable[..., Any]:
    """A method of Triton's builder behind a check of the arguments with these numbers."""
    original = getattr(InterpreterBuilder, name)

    def method(*args: Any, **kwargs: Any) -> Any:
        places = _addresses(action, args[pointers], None if mask is None else args[mask])
        return original(*args[:pointers], places, *args[pointers + 1 :], **kwargs)

    return method


def _to_int(builder: Any, pointers: Any, dtype: Any) -> Any:
    places = TensorHandle(pointers.data & _ADDRESS, pointers.dtype)
    return builder.create_bitcast(places, dtype)


_dot = InterpreterBuilder.create_dot


def _checked_dot(builder: Any, a: Any, b: Any, *options: Any) -> Any:
    if tl.bfloat16 in (a.dtype, b.dtype):
        raise Unsupported("Triton's interpreter multiplies the bits of bfloat16 as integers")
    return _dot(builder, a, b, *options)


CHANGES: list[tuple[Any, str, Any]] = [
    (triton_interpreter, "_implicit_cvt", _convert),
    *(
        (InterpreterBuilder, name, method)
        for name, method in {
            "create_masked_load": _checked("create_masked_load", "load", 1, 2),
            "create_masked_store": _checked("create_masked_store", "store", 1, 3),
            "create_atomic_rmw": _checked("create_atomic_rmw", "update", 2, 4),
            "create_atomic_cas": _checked("create_atomic_cas", "update", 1, None),
            "create_ptr_to_int": _to_int,
            "create_dot": _checked_dot,
        }.items()
    ),
]
"""Owner, name and value of what Triton's interpreter has otherwise while `run_alone` is called."""
