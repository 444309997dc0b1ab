"""bench.compare: ratios, what decides its status, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.compare import Arguments, compare, main
from tests.bench.synthetic_results import not_timed, results, row

ROOT = Path(__file__).resolve().parents[2]
CASE = {"op": "layer_norm", "N": 8, "C": 4, "pass": "forward"}


def _rows(ours: float, peer: float, **cases: float) -> list[dict[str, Any]]:
    rows = [row("norms", CASE, "triton", ours, ours=True), row("norms", CASE, "eager", peer)]
    return rows + [row("norms", {"op": op}, "triton", t, ours=True) for op, t in cases.items()]


def _files(folder: Path, old: Any, new: Any, **changes: str) -> Arguments:
    paths = folder / "old.json", folder / "new.json"
    paths[0].write_text(json.dumps(results(rows=old)))
    paths[1].write_text(json.dumps(results(rows=new, **changes)))
    return Arguments(*paths)


def test_ratios_are_new_over_old_slowest_first():
    old = results(rows=_rows(2.0, 4.0, only_old=1.0))
    new = results(rows=_rows(3.0, 2.0, only_new=1.0))
    found = compare(old, new)
    assert [(c.row["variant"], c.ratio) for c in found.changes] == [("triton", 1.5), ("eager", 0.5)]
    assert [r["case"]["op"] for r in (*found.only_old, *found.only_new)] == ["only_old", "only_new"]


@pytest.mark.parametrize(
    ("ours", "peer", "status"),
    [(1.04, 1.0, 0), (1.06, 1.0, 1), (0.5, 9.0, 0)],
    ids=["within the threshold", "slower", "only a peer slower"],
)
def test_ours_decide_the_status(ours, peer, status, tmp_path, capsys):
    arguments = _files(tmp_path, _rows(1.0, 1.0), _rows(ours, peer))
    if status:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == status
    else:
        main(arguments)
    assert f"{ours:6.3f}x" in capsys.readouterr().out


def test_a_variant_that_fails_now_is_worse_than_slow(tmp_path, capsys):
    new = _rows(1.0, 1.0)
    new[0] = not_timed(new[0], "failed", "wrong result")
    with pytest.raises(SystemExit):
        main(_files(tmp_path, _rows(1.0, 1.0), new))
    assert "fails now: norms" in capsys.readouterr().out


def test_other_devices_are_refused_unless_forced(tmp_path):
    arguments = _files(tmp_path, _rows(1.0, 1.0), _rows(1.0, 1.0), device="Another GPU")
    with pytest.raises(ValueError, match="different devices"):
        main(arguments)
    main(Arguments(arguments.old, arguments.new, force=True))


def test_mistakes_are_one_sentence_and_status_2(tmp_path):
    (tmp_path / "a.json").write_text('{"rows": []}')
    done = subprocess.run(
        [sys.executable, "-m", "bench.compare", *[str(tmp_path / "a.json")] * 2],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "is no result file of a benchmark" in done.stderr
    assert "Traceback" not in done.stderr
