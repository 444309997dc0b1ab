"""The map of the project: the order of its rooms, each importing only those before it."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from packaging.version import Version

import kernels

ROOT = Path(__file__).resolve().parents[1]
# A room is a folder or a flat file. Rooms on one line know nothing of each other.
ORDER = [
    ["kernels", "gpt2.common"],
    ["gpt2.config"],
    ["gpt2.tokenizer", "gpt2.cache", "gpt2.attention", "gpt2.layers", "gpt2.loss"],
    ["gpt2.next_token"],
    ["gpt2.model", "gpt2.backends"],
    ["gpt2.data"],
    ["gpt2.runs"],
    ["gpt2.weights"],
    ["gpt2.export", "gpt2.generate"],
    ["gpt2.evaluate", "gpt2.demo"],
    ["gpt2.training", "gpt2.compare_decoding"],
    ["gpt2.report", "train", "bench"],
    ["gpt2.compare_sizes"],
    ["gpt2.assignment"],
]
FLOOR = {room: floor for floor, rooms in enumerate(ORDER) for room in rooms}
OURS = {"kernels", "gpt2", "bench", "train", "tests"}
STANDARD = {
    "ast", "collections", "contextlib", "copy", "dataclasses", "functools", "importlib", "inspect",
    "itertools", "math", "os", "re", "sys", "textwrap", "threading", "types", "typing", "warnings",
    "weakref",
}  # fmt: skip


def room_of(module: str) -> str:
    """`gpt2.data` of `gpt2.data.shards`, `kernels` of `kernels.gelu`."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "gpt2" and len(parts) > 1 else parts[0]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(code: str) -> Iterator[str]:
    """Dotted names of the modules that a source text imports, anywhere in it."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            # `from gpt2 import x` imports the module gpt2.x
            names = [f".{alias.name}" for alias in node.names] if node.module == "gpt2" else [""]
            yield from (f"{node.module}{name}" for name in names)


def violations(module: str, code: str) -> set[str]:
    """The rooms that a module imports although they do not come before its own."""
    own = room_of(module)
    found = {room_of(name) for name in imports(code)} - {own, "gpt2"}
    ours = {room for room in found if room.partition(".")[0] in OURS}
    above = {room for room in ours if FLOOR.get(room, 99) >= FLOOR[own]}
    if own == "kernels":
        return above | (found - ours - STANDARD - {"torch", "triton"})
    return above | (found & {"transformers"})


SOURCES = [ROOT / "train.py"]
for _top in ("kernels", "gpt2", "bench"):
    SOURCES += sorted((ROOT / _top).rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_imports_run_one_way(path: Path) -> None:
    assert not violations(module_of(path), path.read_text())


def test_every_room_has_its_place() -> None:
    rooms = {room_of(module_of(path)) for path in SOURCES} - {"gpt2"}
    assert rooms == set(FLOOR)


def test_modules_import_in_no_circle() -> None:
    """Nor by an import inside a function; packages that re-export count as what they re-export."""
    known = {module_of(path): path for path in SOURCES}
    graph = {module: known.keys() & imports(path.read_text()) for module, path in known.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(known)


@pytest.mark.parametrize(
    ("module", "code", "wrong"),
    [
        ("kernels.gelu", "def f():\n    from gpt2.model import GPT", {"gpt2.model"}),
        ("kernels.gelu", "import numpy", {"numpy"}),
        ("gpt2.data.shards", "from gpt2.training.step import train_step", {"gpt2.training"}),
        ("gpt2.evaluate.tasks", "from gpt2.demo.html import CSS", {"gpt2.demo"}),
        ("gpt2.model", "from gpt2 import evaluate", {"gpt2.evaluate"}),
        ("gpt2.loss", "import train", {"train"}),
        ("gpt2.report.pdf", "import bench.plot, transformers", {"bench", "transformers"}),
        ("bench.conftest", "from tests.conftest import device", {"tests"}),
    ],
)
def test_a_planted_violation_is_found(module: str, code: str, wrong: set[str]) -> None:
    assert violations(module, code) == wrong


def test_the_package_named_kernels_holds_no_more_than_a_version() -> None:
    """transformers imports a package of this name when it finds one, and parses its version.

    PyPI's package of the name, which ours must not be taken for, is above 0.1.
    """
    docstring, version = ast.parse((ROOT / "kernels/__init__.py").read_text()).body
    assert isinstance(docstring, ast.Expr)
    assert isinstance(version, ast.Assign)
    assert Version(kernels.__version__) < Version("0.1")
