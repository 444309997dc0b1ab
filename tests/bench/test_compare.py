"""bench.compare: ratios, the status, and refusals."""

import json
from contextlib import nullcontext

import pytest

from bench.compare import Arguments, compare, main
from tests.bench.synthetic_results import not_timed, results, row

CASE = {"op": "layer_norm", "N": 8, "pass": "forward"}


def _run(ours, peer, device="Synthetic GPU", **cases):
    rows = [row("norms", CASE, "triton", ours, ours=True), row("norms", CASE, "eager", peer)]
    rows += [row("norms", {"op": op}, "triton", t, ours=True) for op, t in cases.items()]
    return results(rows=rows, device=device)


def test_ratios_are_new_over_old_slowest_first():
    lines, worse = compare(_run(2.0, 4.0, first=1.0), _run(3.0, 2.0, second=1.0), 0.05)
    assert worse
    assert lines == [
        " 1.500x  slower   norms  op=layer_norm,N=8,pass=forward  [triton]",
        " 0.500x  faster   norms  op=layer_norm,N=8,pass=forward  [eager]",
        "only in the old run: norms  op=first  [triton]",
        "only in the new run: norms  op=second  [triton]",
    ]


@pytest.mark.parametrize(
    ("ours", "peer", "status"), [(1.04, 1.0, 0), (1.06, 1.0, 1), (0.5, 9.0, 0), ("fails", 1.0, 1)]
)
def test_ours_decide_the_status(ours, peer, status, tmp_path, capsys):
    new = _run(1.0 if ours == "fails" else ours, peer)
    if ours == "fails":
        new["rows"][0] = not_timed(new["rows"][0], "failed", "wrong result")
    for name, content in (("old", _run(1.0, 1.0)), ("new", new)):
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="1") if status else nullcontext():
        main(Arguments(tmp_path / "old", tmp_path / "new"))
    printed = capsys.readouterr().out
    assert ("fails now: norms" if ours == "fails" else f"{ours:6.3f}x") in printed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_run(1.0, 1.0, device="Another GPU"), "different devices"),
        ({"rows": []}, "is no result file of a benchmark"),
        (results(rows=[]), "no timed row in common"),
    ],
)
def test_what_cannot_be_compared_is_refused(content, message, tmp_path):
    for name, file in (("old", _run(1.0, 1.0)), ("new", content)):
        (tmp_path / name).write_text(json.dumps(file))
    with pytest.raises(ValueError, match=message):
        main(Arguments(tmp_path / "old", tmp_path / "new"))
