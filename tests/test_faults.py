"""The fault campaign in short, and the README's table of the long one."""

import json
import re
from pathlib import Path

import pytest

from tests.faults.__main__ import table
from tests.faults.cases import CASES

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "tests/faults/result.json"


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_nothing_is_lost(name):
    from tests.faults.__main__ import campaign

    (row,) = campaign(long=False, only=name, seed=1)["rows"]
    assert row["lost"] == 0


def test_the_readme_shows_the_committed_result():
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    assert {row["case"] for row in result["rows"]} == set(CASES)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"<!-- faults -->\n(.*?)\n<!-- /faults -->", readme, flags=re.DOTALL)
    assert table(result) in shown
    assert result["command"] in shown
