"""The runner of the campaigns, and those in short that need processes of their own."""

import json
import sys

import pytest

from tests.campaigns import __main__ as runner
from tests.campaigns import soak
from tests.campaigns.faults.cases import CASES
from tests.campaigns.fuzz import engine
from tests.campaigns.fuzz.targets import TARGETS
from tests.campaigns.options import Options
from tests.campaigns.search import Found
from tests.gpt2.stand_ins import run_python


@pytest.mark.skipif(sys.platform != "linux", reason="needs the limits of Linux")
@pytest.mark.parametrize("name", ["faults", "soak"])
def test_nothing_is_lost_and_nothing_grows(name, tmp_path):
    """Run in a process without threads, which a fork would lose."""
    out = tmp_path / "result.json"
    words = ["-m", "tests.campaigns", name, "--seed", "1", "--out", str(out)]
    done = run_python(*words, timeout=None)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["command"] == f"python -m tests.campaigns {name} --seed 1"
    if name == "faults":
        rows = {row["case"]: (row["tried"], row["lost"]) for row in result["rows"]}
        assert rows == {name: (case.short, 0) for name, case in CASES.items()}
    else:
        assert (len(result["rows"]), result["steps"]) == (6, soak.SHORT_STEPS)
        assert len(result["samples"]) > 15


def test_a_failure_is_counted_written_and_ends_with_status_1(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(engine, "fuzz", lambda *_: Found(7, 3, ["KeyError: bad"]))
    out = tmp_path / "result.json"
    with pytest.raises(SystemExit) as end:
        runner.main(Options("fuzz", only="tokenizer-pair", seconds=0.5, out=str(out)))
    assert end.value.code == 1
    said = capsys.readouterr().out
    assert "FAILED: tokenizer-pair: KeyError: bad\n" in said
    assert "| target | tried | accepted | broken |\n| --- | ---: | ---: | ---: |\n" in said
    result = json.loads(out.read_text(encoding="utf-8"))
    row = {"target": "tokenizer-pair", "tried": 7, "accepted": 3, "broken": 1}
    assert result["rows"] == [row]
    assert result["command"].endswith("fuzz --seconds 0.5 --only tokenizer-pair")


def test_a_verdict_that_is_not_kept_is_a_failure():
    assert [runner.failures([{"kept": kept}]) for kept in (True, False)] == [0, 1]


@pytest.mark.parametrize(
    ("message", "run"),
    [
        ("no case contains 'softmax': choose from", lambda: Options("fuzz", only="softmax")),
        ("--steps must be positive, got 0", lambda: Options("faults", steps=0)),
        ("--seconds must be positive, got -1.0", lambda: Options("stress", seconds=-1.0)),
        ("give --steps 300 or more", lambda: Options("soak", steps=200)),
        ("no --seconds", lambda: Options("soak", seconds=9.0)),
    ],
)
def test_what_cannot_be_done_is_refused(message, run):
    with pytest.raises(ValueError, match=message):
        runner.main(run())


def test_the_readme_shows_the_committed_results():
    readme = runner.README.read_text(encoding="utf-8")
    assert runner.with_tables(readme) == readme, "run: python -m tests.campaigns tables"
    faults, fuzz = (
        json.loads((runner.RESULTS / f"{name}.json").read_text(encoding="utf-8"))["rows"]
        for name in ("faults", "fuzz")
    )
    assert {row["case"] for row in faults} == set(CASES)
    assert {row["target"] for row in fuzz} <= set(TARGETS)
