"""Shared by the tests of the tokenizer."""

import pytest


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """Prose that comes with Python."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]
