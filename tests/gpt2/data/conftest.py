"""Shared by the tests of preparation."""

from pathlib import Path

import pytest

from gpt2.data import documents, readers
from gpt2.data.sources import open_source
from gpt2.tokenizer import Tokenizer
from tests.gpt2.data.corpora import stories


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    Tokenizer.train(stories(60), 320).save(path)
    return path


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(documents, "PIECE_CHARS", 64)
    monkeypatch.setattr(documents, "_TAIL_CHARS", 40)
    monkeypatch.setattr(readers, "PIECE_CHARS", 64)


@pytest.fixture
def opened(tmp_path):
    return lambda data: open_source(data, cache_dir=tmp_path / "cache")
