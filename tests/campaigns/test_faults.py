"""The fault campaign in its quickest form, and the README's table of the long one."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.campaigns.faults.__main__ import table
from tests.campaigns.faults.cases import CASES

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "tests/campaigns/faults/result.json"


@pytest.mark.skipif(sys.platform != "linux", reason="needs fork and /proc")
def test_nothing_is_lost(tmp_path):
    """One test of all cases, as they share what is undisturbed; in a process without threads."""
    out = tmp_path / "result.json"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.campaigns.faults",
            "--quick",
            "--seed",
            "1",
            "--out",
            str(out),
        ],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert {row["case"]: (row["tried"], row["lost"]) for row in rows} == {
        name: (case.quick, 0) for name, case in CASES.items()
    }


def test_the_readme_shows_the_committed_result():
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    assert {row["case"] for row in result["rows"]} == set(CASES)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"<!-- faults -->\n(.*?)\n<!-- /faults -->", readme, flags=re.DOTALL)
    assert table(result) in shown
    assert result["command"] in shown
