"""Shared by the tests of preparation."""

from pathlib import Path

import pytest

from gpt2.tokenizer import Tokenizer
from tests.gpt2.data.corpora import stories


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    Tokenizer.train(stories(60), 320).save(path)
    return path
