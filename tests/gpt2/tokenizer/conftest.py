"""Shared by the tests of the tokenizer."""

import gzip
from pathlib import Path

import pytest


def read_text(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """Prose that comes with Python."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]
