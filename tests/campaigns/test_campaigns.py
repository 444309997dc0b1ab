"""The runner of the campaigns, and those in short that need processes of their own."""

import json
import sys
from dataclasses import replace
from operator import itemgetter

import pytest

from tests.campaigns import __main__ as runner
from tests.campaigns import soak
from tests.campaigns.compilers import TRITONS
from tests.campaigns.faults.cases import CASES
from tests.campaigns.fuzz import engine
from tests.campaigns.fuzz.targets import TARGETS
from tests.campaigns.options import Options
from tests.campaigns.search import Found
from tests.campaigns.soak import LINE, LOG_EVERY, Sample, judge
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
        ("give --steps 300 or more", lambda: Options("soak", steps=200)),
        ("no --seconds", lambda: Options("soak", seconds=9.0)),
    ],
)
def test_what_cannot_be_done_is_refused(message, run):
    with pytest.raises(ValueError, match=message):
        runner.main(run())


def test_the_readme_shows_the_committed_results():
    texts = {readme: readme.read_text(encoding="utf-8") for readme in runner.READMES}
    for readme, text in texts.items():
        assert runner.with_tables(readme) == text, "run: python -m tests.campaigns tables"
    for path in runner.RESULTS.glob("*.json"):
        assert "".join(texts.values()).count(f"<!-- {path.stem} -->") == 1, path
    compilers, faults, fuzz = (
        json.loads((runner.RESULTS / f"{name}.json").read_text(encoding="utf-8"))["rows"]
        for name in ("compilers", "faults", "fuzz")
    )
    assert [row["Triton"] for row in compilers] == TRITONS
    assert {row["case"] for row in faults} == set(CASES)
    assert {row["target"] for row in fuzz} <= set(TARGETS)


def test_the_committed_machine_code_is_lean():
    result = json.loads((runner.RESULTS / "instructions.json").read_text(encoding="utf-8"))
    place = itemgetter("kernel", "target")
    ours = {place(row): row for row in result["rows"] if row["of"] == "kernels"}
    for row in ours.values():
        assert [*row][3:] == TRITONS
        spilling = place(row) == ("RMSNorm and addition backward", "sm_120")
        assert spilling or not any("spills" in row[x] for x in TRITONS), row
        assert not any("serialised" in row[x] for x in TRITONS), row
    for row in result["rows"]:
        missed = "attention" in row["kernel"] or place(row) == ("SwiGLU backward", "sm_100")
        if row["of"] != "kernels" and not missed:
            mine, others = (float(x[TRITONS[-1]].split()[0]) for x in (ours[place(row)], row))
            assert mine <= 0.9 * others, row


# The judge of the soak, on samples of a process that grows and of one that does not


def _samples(steps: int = 20_000) -> list[Sample]:
    """Return samples of a process that settles in its first steps and then does not grow."""
    return [
        Sample(
            step=step,
            rss=(300 << 20) + min(step, 500) * 1000 + step % 7 * 4096,
            handles=13 + step // 50 % 2,
            threads=2,
            files=25 + step // 50 % 6,
            metrics=170 * step // LOG_EVERY,
        )
        for step in range(50, steps + 1, 50)
    ]


def _refused(samples: list[Sample]) -> list[str]:
    return [verdict.what for verdict in judge(samples) if not verdict.kept]


def test_a_process_that_keeps_what_it_has_passes():
    assert [_refused(_samples(steps)) for steps in (1000, 20_000)] == [[], []]


@pytest.mark.parametrize(
    ("leak", "named"),
    [
        (lambda s: replace(s, rss=s.rss + 140 * s.step), "resident memory"),
        (lambda s: replace(s, handles=s.handles + s.step // 5000), "open files"),
        (lambda s: replace(s, threads=s.threads + s.step // 5000), "threads"),
        (lambda s: replace(s, files=s.files + s.step // 1000), "files in the run folder"),
        (lambda s: replace(s, metrics=(LINE + 1) * s.step // LOG_EVERY), "metrics.jsonl"),
    ],
    ids=["memory", "handles", "threads", "files", "metrics"],
)
def test_what_grows_is_named(leak, named):
    (refused,) = _refused([leak(sample) for sample in _samples()])
    assert refused.startswith(named)


def test_a_short_soak_sees_a_step_that_is_kept():
    """A step of 100 KiB: its activations."""
    leaking = [replace(s, rss=s.rss + (100 << 10) * s.step) for s in _samples(1000)]
    assert _refused(leaking) == ["resident memory, growth per 1,000 steps"]
