"""Contenders shared by the kernel benchmarks: ours, plain PyTorch, compiled, Liger-Kernel."""

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

from bench.harness.measure import Setting
from bench.harness.passes import Contender, Function

NO_COMPILE = "left out of this profile, as compiling takes longer than the rest"


def ours(
    setting: Setting,
    function: Function,
    *,
    name: str = "triton",
    overwrites: tuple[str, ...] = (),
    compile_too: bool = False,
) -> Contender:
    """Our kernel: timed on a GPU; elsewhere only checked, by the smoke profile."""
    return Contender(
        name, function, ours=True, skip=setting.no_triton, checked=setting.smoke,
        overwrites=overwrites, compile_too=compile_too,
    )  # fmt: skip


def eager_and_compiled(function: Function, *, compile: bool = True) -> list[Contender]:
    """A function of plain PyTorch, eager and, unless `compile` is False, under torch.compile."""
    skip = None if compile else NO_COMPILE
    return [
        Contender("eager", function),
        Contender("torch.compile", function, compile=True, skip=skip),
    ]


def liger(
    setting: Setting, make: Callable[[Any], Function], *, overwrites: tuple[str, ...] = ()
) -> Contender:
    """The function that `make` returns for `liger_kernel.ops`; skipped if it is not installed."""
    skip = missing("liger_kernel")
    if skip is None and not setting.on_gpu:
        skip = "liger_kernel needs a GPU"

    @functools.cache
    def made() -> Function:
        return make(importlib.import_module("liger_kernel.ops"))

    def function(**inputs: Any) -> Any:
        return made()(**inputs)

    return Contender("liger", function, skip=skip, overwrites=overwrites)


def missing(package: str, extra: str = "bench") -> str | None:
    """The reason to skip a peer that is not installed; None if it is."""
    if importlib.util.find_spec(package) is not None:
        return None
    return f"{package} is not installed: pip install -e '.[{extra}]'"
