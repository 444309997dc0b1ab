"""Triton's language, bound to the builder of groups, and the functions written in it."""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from kernels.interpreter.builder import Diverged, GroupBuilder
from kernels.interpreter.semantic import Semantic, init_block_type, init_tensor
from kernels.interpreter.values import Handle, Unsupported

MOST_TURNS = 1_000_000
"""Turns of the loops of a group of programs after which a kernel is said not to end."""
BUILDER = GroupBuilder()
SEMANTIC = Semantic(BUILDER)


# The parts of Python that Triton's language uses.


def _turn() -> None:
    BUILDER.turns += 1
    if BUILDER.turns > MOST_TURNS:
        raise RuntimeError(f"it does not end within {MOST_TURNS:,} turns of its loops")


def _agreed(values: Tensor) -> Any:
    """The value of all programs (P,), or Diverged."""
    if len(values) > 1 and bool((values != values[0]).any()):
        raise Diverged(values)
    return values[0].item()


def _index(tensor: Any) -> int:
    return int(_agreed(tensor.handle.data))


def _bool(tensor: Any) -> bool:
    # Triton's semantic layer asks whether an optional block is given by asking whether it is true.
    return tensor.type.is_block() or bool(_agreed(tensor.handle.data))


def _condition(value: Any) -> Any:
    if isinstance(value, tl.tensor) and value.type.is_block():
        raise Unsupported("a block of values as a condition")
    _turn()
    return value


def _range(start: Any, stop: Any = None, step: Any = 1, **options: Any) -> Iterator[Any]:
    """Like Python's; programs may differ in its bounds, and go on together if their turns agree."""
    if stop is None:
        start, stop = 0, start
    bounds = [x.value if isinstance(x, tl.constexpr) else x for x in (start, stop, step or 1)]
    values = [
        x.handle.data.long() if isinstance(x, tl.tensor) else torch.tensor([x]) for x in bounds
    ]
    turns: Iterable[Any]
    if all(len(x) == 1 for x in values):
        turns = range(*(int(x) for x in values))
    else:
        first, last, by = values
        count = torch.div(last - first + by - by.sign(), by, rounding_mode="floor")
        turns = range(_agreed(count.clamp(min=0)))
        dtype = next(x.dtype for x in bounds if isinstance(x, tl.tensor))
        turns = (
            SEMANTIC.cast(tl.tensor(Handle(tl.int64, first + i * by), tl.int64), dtype)
            for i in turns
        )
    for place in turns:
        _turn()
        yield place


# Sums and other reductions of a block.


def _tensor(dtype: Any, data: Tensor) -> Any:
    handle = BUILDER.handle(dtype, data)
    shape = list(data.shape[1:])
    return tl.tensor(handle, tl.block_type(dtype, shape) if shape else dtype)


def _combine(combine: Any, lhs: list[Tensor], rhs: list[Tensor], dtypes: list[Any]) -> list[Tensor]:
    operands = [_tensor(t, x) for xs in (lhs, rhs) for t, x in zip(dtypes, xs, strict=True)]
    results = combine(*operands)
    results = results if isinstance(results, (tuple, tl.tuple)) else (results,)
    return [x.handle.data for x in results]


def _on_blocks(function: Callable[..., list[Tensor]]) -> Callable[..., Any]:
    """Let a function of the values and dtypes of blocks take one block, or a tuple of them."""

    def operation(operands: Any, *arguments: Any, **options: Any) -> Any:
        single = isinstance(operands, tl.tensor)
        operands = (operands,) if single else tuple(operands)
        dtypes = [x.dtype for x in operands]
        found = function([x.handle.data for x in operands], dtypes, *arguments, **options)
        results = tuple(_tensor(t, x) for t, x in zip(dtypes, found, strict=True))
        return results[0] if single else results

    return operation


@_on_blocks
def _reduce(data, dtypes, axis, combine_fn, keep_dims=False, **options):
    """Reduce in pairs of neighbours, which takes log2(n) steps; sums and extrema at once."""
    axis = axis.value if isinstance(axis, tl.constexpr) else axis
    rank = data[0].dim() - 1
    if axis is None:
        data = [x.reshape(len(x), -1) for x in data]
    dim = 1 if axis is None else axis % rank + 1
    found = _known_reduction(combine_fn, data[0], dim) if len(data) == 1 else None
    if found is None:
        while data[0].shape[dim] > 1:
            pairs = [x.unflatten(dim, (-1, 2)) for x in data]
            even, odd = ([x.select(dim + 1, i) for x in pairs] for i in (0, 1))
            data = _combine(combine_fn, even, odd, dtypes)
        found = [x.squeeze(dim) for x in data]
    if keep_dims:
        found = [x.unsqueeze(dim) if axis is not None else x.view(-1, *[1] * rank) for x in found]
    return found


def _known_reduction(combine_fn: Any, data: Tensor, dim: int) -> list[Tensor] | None:
    if combine_fn is tl.standard._sum_combine and data.dtype != torch.bool:
        return [data.sum(dim, dtype=data.dtype)]
    for extremum, reduce in (
        (tl.standard._elementwise_max, torch.amax), (tl.standard._elementwise_min, torch.amin)
    ):  # fmt: skip
        if combine_fn is extremum:
            found = reduce(data, dim)
            # These take NaN for the extremum; Triton's by default take it for nothing.
            return None if data.is_floating_point() and bool(found.isnan().any()) else [found]
    return None


@_on_blocks
def _scan(data, dtypes, axis, combine_fn, reverse=False, **options):
    """Scan in log2(n) steps, in each of which an element meets the one twice as far away."""
    dim = axis % (data[0].dim() - 1) + 1
    data = [x.flip(dim) if reverse else x for x in data]
    size, by = data[0].shape[dim], 1
    while by < size:
        # Whole blocks, as blocks have powers of two elements; the first `by` stay as they are.
        before = [torch.cat([x.narrow(dim, 0, by), x.narrow(dim, 0, size - by)], dim) for x in data]
        met = _combine(combine_fn, before, data, dtypes)
        data = [
            torch.cat([x.narrow(dim, 0, by), m.narrow(dim, by, size - by)], dim)
            for x, m in zip(data, met, strict=True)
        ]
        by *= 2
    return [x.flip(dim) if reverse else x for x in data]


# The language, bound to this builder.


def _static_assert(condition: Any, message: str = "") -> None:
    assert condition, message


def _language() -> list[tuple[Any, str, Any, Any]]:
    """What is exchanged during a launch: (owner, name, replacement, original)."""
    changes: list[tuple[Any, str, Any]] = []

    def bound(member: Any) -> Callable[..., Any]:
        function = inspect.unwrap(member)  # of a check that a semantic layer is given

        def call(*args: Any, **kwargs: Any) -> Any:
            kwargs["_semantic"] = SEMANTIC
            return function(*args, **kwargs)

        return call

    for owner in (tl, tl.core, tl.tensor, tl.math, tl.core.tensor_descriptor_base):
        for name, member in inspect.getmembers(owner):
            if tl.core.is_builtin(member):
                changes.append((owner, name, bound(member)))
    for owner, name in product((tl, tl.core), ("multiple_of", "max_contiguous", "max_constancy")):
        changes.append((owner, name, lambda tensor, values: tensor))
    for owner, (name, function) in product((tl, tl.core), {
        "range": _range, "static_range": _range, "static_assert": _static_assert,
        "static_print": print, "reduce": _reduce, "associative_scan": _scan,
    }.items()):  # fmt: skip
        changes.append((owner, name, function))
    transpose = property(
        lambda tensor: SEMANTIC.permute(tensor, (*range(len(tensor.shape) - 2), -1, -2))
    )
    changes += [
        (tl.block_type, "__init__", init_block_type),
        (tl.tensor, "__init__", init_tensor),
        (tl.dtype, "to_ir", lambda self, builder: self),
        (tl.tensor, "__index__", _index),
        (tl.tensor, "__bool__", _bool),
        (tl.tensor, "__repr__", lambda self: repr(self.handle.data)),
        (tl.tensor, "__str__", lambda self: str(self.handle.data)),
        (tl.tensor, "T", transpose),
        (
            InterpretedFunction,
            "__call__",
            lambda self, *args, **kwargs: function_of(self.fn)(*args, **kwargs),
        ),
    ]
    return [(owner, name, new, vars(owner).get(name)) for owner, name, new in changes]


@contextmanager
def patched_language() -> Iterator[None]:
    for owner, name, new, _ in _changes:
        setattr(owner, name, new)
    try:
        yield
    finally:
        for owner, name, _, old in reversed(_changes):
            if old is None:
                delattr(owner, name)
            else:
                setattr(owner, name, old)


class _Rewriter(ast.NodeTransformer):
    """Let every assignment make a tensor, as the compiler does, and every `range` be `_range`."""

    def visit_Assign(self, node: ast.Assign) -> ast.Assign:
        self.generic_visit(node)
        node.value = _call("to_tensor", node.value, ast.Constant(False))
        return node

    def _condition(self, node: Any) -> Any:
        self.generic_visit(node)
        node.test = _call("condition", node.test)
        return node

    visit_If = visit_IfExp = visit_While = _condition

    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "range":
            return _call("range", *node.args)
        return node


NAME = "batched_interpreter"


def _call(function: str, *arguments: ast.expr) -> ast.Call:
    owner = ast.Name(NAME, ast.Load())
    return ast.Call(ast.Attribute(owner, function, ast.Load()), list(arguments), [])


class _Namespace:
    to_tensor = staticmethod(SEMANTIC.to_tensor)
    range = staticmethod(_range)
    condition = staticmethod(_condition)


functions: dict[Any, Callable[..., Any]] = {}


def function_of(fn: Any) -> Callable[..., Any]:
    """The Python function that interprets a kernel or a device function."""
    if fn not in functions:
        lines, first = inspect.getsourcelines(fn)
        tree = ast.parse(textwrap.dedent("".join(lines)))
        definition: Any = tree.body[0]
        definition.decorator_list = []
        for argument in definition.args.args:
            argument.annotation = None
        definition.returns = None
        tree = ast.fix_missing_locations(_Rewriter().visit(tree))
        ast.increment_lineno(tree, first - 1)
        fn.__globals__[NAME] = _Namespace
        found: dict[str, Any] = {}
        exec(
            compile(tree, str(inspect.getsourcefile(fn)), "exec", dont_inherit=True),
            fn.__globals__,
            found,
        )
        functions[fn] = found[fn.__name__]
    return functions[fn]


_changes = _language()
