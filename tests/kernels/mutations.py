"""Planted faults: change one line of a kernel and see that a test notices.

A mutant is a module's source with one fragment replaced, imported under its own name, its operators
in a namespace of their own. `expect_caught` puts the mutant's functions in the place of the real
ones in the modules that use them, and runs an ordinary test function, which must fail.
"""

import importlib.util
import inspect
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest
from triton.runtime.errors import InterpreterError

from kernels._common import op as _op

_serial = itertools.count()


@dataclass(frozen=True)
class Mutation:
    """One planted fault and the test that must catch it."""

    fault: str
    """What goes wrong, in words."""
    old: str
    """The fragment of source that is replaced, everywhere; it must occur `count` times."""
    new: str
    test: Callable[..., Any]
    """An ordinary test function."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Its parameters, fixtures aside."""
    count: int = 1

    def __str__(self) -> str:
        return self.fault


def mutant(module: ModuleType, mutation: Mutation, folder: Path) -> ModuleType:
    """Import a copy of `module` with the fault planted; the copy is written into `folder`."""
    source = Path(module.__file__).read_text()
    found = source.count(mutation.old)
    assert found == mutation.count, f"{mutation.fault}: {mutation.old!r} occurs {found} times"
    name = f"mutant_{next(_serial)}"
    # Triton reads the source of a kernel from its file, so the mutant needs one.
    path = folder / f"{name}.py"
    path.write_text(source.replace(mutation.old, mutation.new))
    spec = importlib.util.spec_from_file_location(name, path)
    copy = importlib.util.module_from_spec(spec)
    sys.modules[name] = copy
    with patch.object(_op, "NAMESPACE", name):
        spec.loader.exec_module(copy)
    return copy


Cases = Sequence[tuple[ModuleType, list[ModuleType], list[Mutation]]]
"""Modules with the modules that use their functions, and the faults planted in them."""


def each_fault(cases: Cases) -> pytest.MarkDecorator:
    """Parametrize a test by `fault`: the first three arguments of `expect_caught`."""
    faults = [(module, users, each) for module, users, planted in cases for each in planted]
    names = [f"{module.__name__}: {mutation}" for module, _, mutation in faults]
    return pytest.mark.parametrize("fault", faults, ids=names)


def expect_caught(module, users, mutation, folder, **fixtures):
    """Assert that the mutation's test fails when `users` hold the mutant's functions.

    Args:
        module: the module to mutate.
        users: modules that imported names from it: the test's own, or the launchers of its kernels.
        mutation: the fault and its test.
        folder: where the mutant's source is written.
        fixtures: what pytest would give the test; those that it does not take are left out.
    """
    taken = inspect.signature(mutation.test).parameters
    fixtures = {name: value for name, value in fixtures.items() if name in taken}
    copy = vars(mutant(module, mutation, folder))
    # What the two modules import is the same object; the interpreter adds names of its own to both.
    defined = {
        id(value): name
        for name, value in vars(module).items()
        if copy.get(name, value) is not value and not name.startswith("__")
    }
    with ExitStack() as stack:
        found = False
        for user in users:
            for name, value in list(vars(user).items()):
                if id(value) in defined:
                    found = True
                    stack.enter_context(patch.object(user, name, copy[defined[id(value)]]))
        assert found, f"{[user.__name__ for user in users]} use nothing of {module.__name__}"
        try:
            mutation.test(**mutation.arguments, **fixtures)
        except AssertionError:
            return
        except InterpreterError as error:  # the interpreter itself saw what the fault does
            if " outside " in str(error):
                return
            raise
    raise AssertionError(f"not caught: {mutation.fault}")
