"""`python-docs`: the prose that ships with every CPython, for a first run with no download.

It is the reference behind `help("topics")` and the docstrings of the standard library, some 2 MB of
English about one subject. The sources are parsed, never imported: importing would run them. The
text differs a little between versions of Python, so the fingerprint holds the version.
"""

import ast
import functools
import hashlib
import platform
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from gpt2.data.documents import Piece, Source, document_pieces

_LAYOUT = "1"  # part of the fingerprint: change it when the text made here changes
_LEFT_OUT = {
    "__pycache__", "dist-packages", "idle_test", "lib-dynload", "site-packages", "test", "tests",
}  # fmt: skip
_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def python_docs() -> Source:
    """Open the source `python-docs`; a ValueError if this Python lacks its library's sources."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = tuple(_modules(root))
    if not paths:
        raise ValueError(
            f"--data python-docs reads the standard library's sources, and {root} has none. "
            "Give a text file: --data my.txt"
        )
    version = platform.python_version()
    listing = [(path.relative_to(root).as_posix(), path.stat().st_size) for path in paths]
    identity = f"python-docs {_LAYOUT} {version} {listing}"

    def read(share: int = 0, of: int = 1) -> Iterator[Piece]:
        documents = _documents(root, paths)
        n = len(documents)
        for text in documents[n * share // of : n * (share + 1) // of]:
            yield from document_pieces(text, len(text.encode("utf-8")))

    return Source(
        name="python-docs",
        fingerprint=hashlib.sha256(identity.encode()).hexdigest(),
        splits={"train": read},
        notes=(f"python-docs: help topics and library docstrings of CPython {version}",),
        details={"kind": "python-docs", "python": version},
    )


def _modules(root: Path) -> Iterator[Path]:
    """The library's .py files, in the same order on every file system."""
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        if not _LEFT_OUT.intersection(path.relative_to(root).parts):
            yield path


@functools.lru_cache(maxsize=1)
def _documents(root: Path, paths: tuple[Path, ...]) -> tuple[str, ...]:
    """The documents. Cached (2 MB): parsing takes seconds, and the text is read more than once."""
    documents: list[str] = []
    for path in paths:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            try:
                tree = ast.parse(path.read_bytes())
            except (SyntaxError, ValueError):  # kept in the library as a bad example
                continue
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        if name == "pydoc_data.topics":
            documents += _topics(tree)
        else:
            documents += ["\n\n".join(_docstrings(tree, name)) + "\n"]
    return tuple(documents)


def _topics(tree: ast.Module) -> list[str]:
    """The values of the one dictionary that is the module `pydoc_data.topics`, in order of key."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            topics: dict[str, str] = ast.literal_eval(node.value)
            return [topics[key].strip() + "\n" for key in sorted(topics)]
    return []


def _docstrings(node: _Documented, name: str) -> Iterator[str]:
    """The docstrings of a node and all classes and functions in it, each with its dotted name."""
    if text := ast.get_docstring(node):
        yield f"{name}\n\n{text}"
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings(child, f"{name}.{child.name}")
