"""The text that comes with every CPython."""

import sys
import sysconfig
from pathlib import Path

import pytest

from gpt2.data.python_docs import python_docs
from tests.gpt2.data.corpora import joined, write


def test_python_docs_are_prose_read_without_importing_anything(tmp_path, monkeypatch):
    library = Path(sysconfig.get_path("stdlib"))
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(ValueError, match=r"--data python-docs reads .*--data my\.txt"):
        python_docs()
    for name in ("json/__init__.py", "this.py", "pydoc_data/topics.py"):
        write(tmp_path / name, (library / name).read_bytes())
    write(tmp_path / "test/support.py", '"""No prose."""')
    write(tmp_path / "bad.py", "print 1")
    monkeypatch.delitem(sys.modules, "this", raising=False)
    source = python_docs()
    texts = joined(source.splits["train"]())
    assert "this" not in sys.modules
    assert texts == joined(source.splits["train"]())
    assert python_docs().fingerprint == source.fingerprint
    assert texts[0].startswith("json\n\n")
    assert "json.dumps\n\nSerialize ``obj`` to a JSON formatted ``str``." in texts[0]
    assert any('The "assert" statement' in text for text in texts)
    assert not any(text.startswith(("bad", "test.")) for text in texts)
    assert f"{sys.version_info.major}.{sys.version_info.minor}." in source.notes[0]
