"""The shape of the project: which way imports run, how long files are, what `kernels` may be."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Who may import whom; everybody may import what is not ours.
MAY_IMPORT = {
    "kernels": {"kernels"},
    "gpt2": {"gpt2", "kernels"},
    "bench": {"bench", "gpt2", "kernels"},
    "train": {"gpt2"},
}
OURS = {"kernels", "gpt2", "bench", "train", "tests"}
MAX_LINES = 450


def _sources(*folders: str) -> list[Path]:
    found = [p for folder in folders for p in (ROOT / folder).rglob("*.py")]
    return sorted([*found, ROOT / "train.py"])


def _imports(code: str) -> set[str]:
    """Dotted names of the modules that a source text imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names.add(node.module or "")
    return names


def _violations(path: Path, code: str) -> set[str]:
    part = path.relative_to(ROOT).parts[0].removesuffix(".py")
    roots = {name.partition(".")[0] for name in _imports(code)}
    wrong = (roots & OURS) - MAY_IMPORT[part]
    return wrong | (roots & {"transformers"})


@pytest.mark.parametrize(
    "path", _sources("kernels", "gpt2", "bench"), ids=lambda p: str(p.relative_to(ROOT))
)
def test_imports_run_one_way(path):
    assert not _violations(path, path.read_text())


def test_a_planted_violation_is_found():
    assert _violations(ROOT / "kernels/x.py", "def f():\n    from gpt2.model import GPT") == {
        "gpt2"
    }
    assert _violations(ROOT / "gpt2/x.py", "import train") == {"train"}
    assert _violations(ROOT / "gpt2/x.py", "import bench.plot, transformers") == {
        "bench",
        "transformers",
    }


def test_kernels_know_only_torch_and_triton():
    allowed = {"torch", "triton", "kernels"}
    standard = {
        "collections", "contextlib", "dataclasses", "functools", "importlib", "math", "threading",
        "typing", "weakref", "warnings", "os", "itertools",
    }  # fmt: skip
    for path in (ROOT / "kernels").glob("*.py"):
        roots = {name.partition(".")[0] for name in _imports(path.read_text())}
        assert roots <= allowed | standard, path


def test_the_package_named_kernels_is_a_docstring_only():
    """transformers imports a package of this name when it finds one, and asks for its version."""
    body = ast.parse((ROOT / "kernels/__init__.py").read_text()).body
    assert len(body) == 1
    assert isinstance(body[0], ast.Expr)


@pytest.mark.parametrize(
    "path",
    sorted([*_sources("kernels", "gpt2", "bench"), *(ROOT / "tests").glob("*.py")]),
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_files_stay_short(path):
    lines = path.read_text().count("\n")
    assert lines <= MAX_LINES, f"{path.name} has {lines} lines: does it still have one role?"
