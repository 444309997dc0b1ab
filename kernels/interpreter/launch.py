"""Launch interpreted kernels, many programs at a time."""

import functools
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.errors import InterpreterError
from triton.runtime.interpreter import InterpretedFunction, interpreter_builder
from triton.runtime.jit import mangle_type
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels.interpreter.alone import CHANGES, run_alone
from kernels.interpreter.builder import LARGEST_VALUE, Diverged, TooLarge
from kernels.interpreter.language import (
    BUILDER,
    SEMANTIC,
    function_of,
    functions,
    patched_language,
)
from kernels.interpreter.memory import RECORDERS, Launch, Memory, OutOfBounds, pointer_to
from kernels.interpreter.values import Unsupported

_lock = threading.RLock()
_signature = functools.cache(inspect.signature)


def _argument(name: str, value: Any) -> Any:
    """What a kernel sees of a launch argument."""
    if isinstance(value, triton.runtime.jit.TensorWrapper):
        raise Unsupported(f"{name}: triton.reinterpret")
    if isinstance(value, Tensor):
        if value.device.type != "cpu":
            raise Unsupported(f"{name}: a tensor on {value.device}, not on the CPU")
        pointer = tl.str_to_ty(mangle_type(value), None)
        return tl.tensor(pointer_to(name, value, pointer.element_ty), pointer)
    if isinstance(value, TensorDescriptor):
        if getattr(value, "round_f32_to_tf32", False):
            raise Unsupported(f"{name}: rounding to TF32")
        return SEMANTIC.make_tensor_descriptor(
            _argument(name, value.base), value.shape, value.strides,
            [tl.constexpr(n) for n in value.block_shape], value.padding,
        )  # fmt: skip
    if isinstance(value, (bool, int, float)):
        dtype = tl.str_to_ty(mangle_type(value), None)
        return tl.tensor(BUILDER._constant(dtype, value), dtype)
    if isinstance(value, tuple):
        return tl.tuple([_argument(f"{name}[{i}]", x) for i, x in enumerate(value)])
    if value is None:
        return None
    raise Unsupported(f"{name}: an argument of type {type(value).__name__}")


def _bound(kernel: Any, args: Any, kwargs: Any) -> tuple[dict[str, Any], set[str]]:
    """The arguments of a launch by name, options of the compiler left out; and the constants."""
    signature = _signature(kernel.fn)
    parameters = signature.parameters
    options = {name: x for name, x in kwargs.items() if name in parameters}
    bound = signature.bind(*args, **options)
    bound.apply_defaults()
    return bound.arguments, {n for n, p in parameters.items() if "constexpr" in str(p.annotation)}


def launch(kernel: Any, grid: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Run all programs of a grid; if one fails, the tensors are what they were before.

    Raises:
        InterpreterError: an access outside a tensor, an operation that is not supported, a kernel
            that does not end or another error in it, with the kernel, its line and a program.
    """
    given, constants = _bound(kernel, args, kwargs)
    for hook in kernel.pre_run_hooks:
        hook(**given)
    grid = grid(given) if callable(grid) else grid
    grid = (*grid, 1, 1)[:3]
    with _lock, ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        precision = torch.get_float32_matmul_precision()
        stack.callback(torch.set_float32_matmul_precision, precision)
        torch.set_float32_matmul_precision("highest")
        stack.enter_context(patched_language())
        BUILDER.start_group(torch.zeros(0, 3), (0, 0, 0))
        previous, BUILDER.memory = BUILDER.memory, Memory()
        stack.callback(setattr, BUILDER, "memory", previous)
        try:
            arguments = {
                name: value if name in constants else _argument(name, value)
                for name, value in given.items()
            }  # fmt: skip
            work = _run_groups(function_of(kernel.fn), arguments, grid)
        except BaseException as error:
            BUILDER.memory.undo()
            if not isinstance(error, Exception):
                raise
            raise InterpreterError(_explain(kernel, error, functions, BUILDER.programs)) from error
    work.kernel = kernel.fn.__name__
    for recorder in RECORDERS:
        recorder.append(work)


def _run_groups(function: Callable[..., Any], arguments: dict[str, Any], grid: Any) -> Launch:
    z, y, x = torch.meshgrid(
        *(torch.arange(n, dtype=torch.int32) for n in reversed(grid)), indexing="ij"
    )
    programs = torch.stack([x.reshape(-1), y.reshape(-1), z.reshape(-1)], 1)
    total = Launch("", len(programs))
    waiting = [programs] if len(programs) else []
    largest = 1  # elements of a value, as far as is known
    store = BUILDER.memory
    while waiting:
        group = waiting.pop()
        fitting = max(LARGEST_VALUE // largest, 1)
        if len(group) > fitting:
            waiting += reversed(group.split(fitting))
            continue
        BUILDER.start_group(group, grid)
        store.size, store.work, written = len(group), Launch(""), len(store.journal)
        try:
            function(**arguments)
        except TooLarge as error:
            store.undo(written)
            largest = max(error.elements, largest * 2)
            waiting.append(group)
        except Diverged as error:
            store.undo(written)
            _, ways = error.ways.unique(return_inverse=True)
            waiting += [group[ways == way] for way in reversed(range(int(ways.max()) + 1))]
        else:
            total.add(store.work)
    return total


def _explain(kernel: Any, error: BaseException, functions: Iterable[Any], programs: Tensor) -> str:
    """Say where a kernel failed: its name, the line, the program if it is known, and why.

    `functions` are those that were interpreted, and `programs` (P, 3) those that ran.
    """
    files = {inspect.getsourcefile(f) for f in functions} - {tl.standard.__file__}
    line = _last_line(error, files)
    while isinstance(error, InterpreterError) and error.__cause__:  # of a call in Triton's
        error = error.__cause__
        line = _last_line(error, files) or line
    where = kernel.fn.__name__
    if line:
        where += f", {line.tb_frame.f_code.co_filename}:{line.tb_lineno}"
    place = error.place if isinstance(error, OutOfBounds) else 0 if len(programs) == 1 else None
    if place is not None:
        where += f", program {tuple(programs[place].tolist())}"
    if isinstance(error, Unsupported):
        return f"{where}: not supported by this interpreter: {error}"
    return f"{where}: {error if isinstance(error, OutOfBounds) else repr(error)}"


def _last_line(error: BaseException, files: set[str | None]) -> Any:
    """Where an error passed last through one of these files, or None."""
    line, trace = None, error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename in files:
            line = trace
        trace = trace.tb_next
    return line


def _run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
    if not warmup:
        launch(self, grid, args, kwargs)


def _run_one_by_one(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
    if warmup:
        return
    arguments, _ = _bound(self, args, kwargs)
    with _lock:
        interpreter_builder.grid_idx = None
        try:
            run_alone(self, arguments, args, grid, kwargs)
        except Exception as error:
            program = interpreter_builder.grid_idx
            programs = torch.zeros(0, 3) if program is None else torch.tensor([program])
            functions = InterpretedFunction.rewritten_fn
            raise InterpreterError(_explain(self, error, functions, programs)) from error


@contextmanager
def batched(active: bool = True) -> Iterator[None]:
    """Run the kernels launched in this block in groups; with False, by Triton's interpreter.

    An access outside the tensor that its pointer was made from is seen in Triton's too; a pointer
    that the kernel makes from an integer is not held to a tensor there. `tl.dot` of bfloat16 is an
    InterpreterError in it, as the numbers would be wrong.

    Raises:
        RuntimeError: Triton was imported without TRITON_INTERPRET=1 and has compiled kernels only.
    """
    if not isinstance(tl.standard.cdiv, InterpretedFunction):
        raise RuntimeError(
            "kernels are compiled in this process: set TRITON_INTERPRET=1 before Triton is imported"
        )
    run = _run if active else _run_one_by_one
    changes = [(InterpretedFunction, "run", run), *([] if active else CHANGES)]
    with ExitStack() as stack:
        for owner, name, new in changes:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, new)
        yield


def enable() -> None:
    """Run all interpreted kernels of this process in groups of programs from now on."""
    InterpretedFunction.run = _run
