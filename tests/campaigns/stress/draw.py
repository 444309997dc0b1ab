"""The random choices of a case: shapes, values, memory layouts.

hypothesis makes them, so that it can make a failing case smaller and try it again. Values are drawn
on the CPU from a seed of its choice, whatever device they are for. A GPU gets larger cases.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.campaigns.stress.memory import Memory

T = TypeVar("T")
# GPT-2's, and those at which something in a launcher changes.
KNOWN_SIZES = (64, 96, 113, 128, 257, 512, 768, 1000, 1024, 1280, 1600, 2048, 3072, 4096, 5000)
_PARTS = 600  # of which a chance is a whole number


class Draw:
    """A source of random choices: `draw` of a composite strategy, with memory for the tensors."""

    def __init__(self, draw: st.DrawFn, memory: Memory) -> None:
        self._draw = draw
        self.memory = memory
        self.on_gpu = memory.device.type == "cuda"
        self._generator = torch.Generator().manual_seed(self.integer(0, 2**32 - 1))
        # Half of the cases are of ordinary numbers, so that budgets are tight in many.
        self._calm = not self.chance(1 / 2)

    def integer(self, low: int, high: int) -> int:
        """Draw from `low` to `high`, both included."""
        return self._draw(st.integers(low, high))

    def number(self, low: float, high: float) -> float:
        """Draw one of 1,000 numbers from `low` to `high`."""
        return low + (high - low) * self.integer(0, 999) / 999

    def chance(self, probability: float) -> bool:
        """Draw True with this probability; hypothesis prefers False."""
        # Not at the ends of the range, which hypothesis draws more often than other numbers.
        return 2 <= self.integer(0, _PARTS) < 2 + _PARTS * probability

    def choose(self, *options: T) -> T:
        """Draw one of the options; hypothesis prefers the first."""
        return self._draw(st.sampled_from(options))

    def some(self, options: Sequence[T], count: int) -> list[T]:
        """Draw `count` different options, in any order."""
        return self._draw(st.permutations(options))[:count]

    def dtype(self) -> torch.dtype:
        return self.choose(torch.float32, torch.float16, torch.bfloat16)

    def size(self, most: int) -> int:
        """Draw from 1 to `most`: small, next to a power of two, of GPT-2, or any."""
        kinds = {
            "small": lambda: self.integer(1, 9),
            "power": lambda: 2 ** self.integer(1, most.bit_length()) + self.choose(-1, 0, 1),
            "known": lambda: self.choose(*KNOWN_SIZES),
            "any": lambda: round(math.exp(self.number(0, math.log(most)))),
        }
        found = kinds[self.choose(*kinds)]()
        return found if 1 <= found <= most else self.integer(1, most)

    def rows(self, elements: int, width: int) -> tuple[int, ...]:
        """Draw up to three axes before one of this width: about so many elements; seldom, none.

        On a GPU, 16 times as many: the interpreter is slow.
        """
        most = max(2, (16 if self.on_gpu else 1) * elements // width)
        shape = [self.size(most)]
        while len(shape) < 3 and self.chance(1 / 3):
            shape.insert(0, self.size(max(1, most // math.prod(shape))))
        if self.chance(1 / 40):
            shape[self.integer(0, len(shape) - 1)] = 0
        return () if shape == [1] and self.chance(1 / 2) else tuple(shape)

    def values(self, shape: Sequence[int], dtype: torch.dtype, kind: str = "") -> Tensor:
        """Draw finite numbers of a kind, by default of any of KINDS."""
        if not kind:
            ordinary = self._calm or not self.chance(1 / 2)
            kind = "normal" if ordinary else self.choose(*KINDS)
        info = torch.finfo(dtype)
        return KINDS[kind](self, tuple(shape), info).clamp(info.min, info.max).to(dtype)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator, dtype=torch.float64)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self._generator, dtype=torch.float64)

    def integers(self, low: int, high: int, shape: Sequence[int]) -> Tensor:
        """Draw int64 from [low, high)."""
        return torch.randint(low, high, tuple(shape), generator=self._generator)

    def place(self, values: Tensor, name: str, *, unit_last: bool = False) -> Tensor:
        """Lay values out in guarded memory: contiguous, transposed, sliced, expanded, off a line.

        An axis that is expanded takes its first element. With `unit_last` the elements of the last
        axis are neighbours.
        """
        shape = values.shape
        axes = list(range(len(shape)))
        strides = [1] * len(shape)
        plain = not self.chance(2 / 3)
        if not plain and self.chance(1 / 2):
            moved = axes[:-1] if unit_last else axes
            axes = self.some(moved, len(moved)) + axes[len(moved) :]
        stretched = self.choose(*axes) if axes and self.chance(1 / 4) else -1
        extent = 1
        for axis in reversed(axes):
            fixed = plain or (unit_last and axis == len(shape) - 1)
            if not fixed and self.chance(1 / 12):
                strides[axis] = 0
                continue
            step = self.choose(2, 3) if axis == stretched and not fixed else 1
            strides[axis] = extent * step
            extent *= max(1, shape[axis]) * step
            if not plain and self.chance(1 / 4):
                extent += self.integer(1, 9) * strides[axis]
        offset = self.integer(1, 9) if not plain and self.chance(1 / 2) else 0
        return self.memory.place(values, strides, offset, name)

    def inputs(self, tensors: dict[str, Tensor], *, unit_last: bool = False) -> dict[str, Any]:
        """Place the values of arguments; most ask for a gradient."""
        return {
            name: self.ask(self.place(x, name, unit_last=unit_last)) for name, x in tensors.items()
        }

    def ask(self, x: Tensor) -> Tensor:
        """Let most tensors ask for a gradient."""
        return x.requires_grad_(not self.chance(1 / 6))

    def upstream(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Draw the gradient of an output, in any layout."""
        return self.place(self.values(shape, dtype), "the upstream gradient")


Kind = Callable[[Draw, tuple[int, ...], torch.finfo], Tensor]


def _rows(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-1], 1) if shape else shape


def _signs(draw: Draw, shape: tuple[int, ...]) -> Tensor:
    return torch.where(draw.uniform(*shape) < 0.5, -1.0, 1.0).double()


def _power(draw: Draw, low: int, high: int) -> float:
    """Draw a power of ten."""
    return 10.0 ** draw.number(low, high)


def _one_outlier(draw: Draw, shape: tuple[int, ...], info: torch.finfo) -> Tensor:
    x = draw.normal(*shape)
    if x.numel():
        place = int(draw.integers(0, x.numel(), ()))
        x.view(-1)[place] = draw.choose(-1, 1) * min(info.max, _power(draw, 2, 6))
    return x


def _mixed_rows(draw: Draw, shape: tuple[int, ...], info: torch.finfo) -> Tensor:
    kinds = draw.some([kind for kind in KINDS if kind != "mixed rows"], 3)
    options = torch.stack([KINDS[kind](draw, shape, info) for kind in kinds])
    which = draw.integers(0, 3, _rows(shape)).expand(shape)
    return options.gather(0, which[None])[0]


# By name; s is the shape.
KINDS: dict[str, Kind] = {
    "normal": lambda draw, s, info: draw.normal(*s),
    "large": lambda draw, s, info: draw.normal(*s) * info.max ** draw.number(0, 1),
    "small": lambda draw, s, info: draw.normal(*s) * info.smallest_normal ** draw.number(0, 1),
    "subnormal": lambda draw, s, info: draw.normal(*s) * info.smallest_normal / 4,
    "huge": lambda draw, s, info: _signs(draw, s) * (1 - draw.uniform(*s) / 2) * info.max,
    "zeros": lambda draw, s, info: _signs(draw, s) * 0.0,
    "constant rows": lambda draw, s, info: _power(draw, -2, 3) * draw.normal(*_rows(s)).expand(s),
    "one outlier": _one_outlier,
    "offset": lambda draw, s, info: draw.normal(*s) + draw.choose(-1, 1) * _power(draw, 0, 4),
    "whole numbers": lambda draw, s, info: draw.integers(-3, 4, s).double(),
    "sparse": lambda draw, s, info: draw.normal(*s) * (draw.uniform(*s) < 0.1),
    "mixed rows": _mixed_rows,
}
