"""Tables and plots in README.md and bench/README.md are those of the newest results."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bench.harness.results import FOLDER, newest
from bench.readme_tables import NO_RESULTS, READMES, Arguments, main, newest_of_each_device, render
from tests.bench.synthetic_results import not_timed, results


def _marked(*tables: str) -> str:
    return "".join(f"# {t}\n<!-- bench:{t} -->\nstale\n<!-- /bench -->\n" for t in tables)


def _keep(root: Path, name: str, **changes: Any) -> Path:
    file = root / "bench/results" / changes.pop("slug", "synthetic") / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results(**changes)))
    return file


@pytest.mark.parametrize("readme", READMES, ids=["README.md", "bench/README.md"])
def test_a_readme_agrees_with_the_results(readme):
    text = readme.read_text(encoding="utf-8")
    assert render(text, FOLDER) == text, "run python -m bench.readme_tables --write"
    for link in re.findall(r"\(((?:bench/)?results/[^)]+\.png)\)", text):
        file = newest((readme.parent / link).parent)
        with Image.open(readme.parent / link) as image:
            assert image.info["Source"] == file.name, link


def test_tables_show_the_newest_file_of_each_device_gpus_first(tmp_path):
    _keep(tmp_path, "2000-01-01-old.json", rows=[])
    _keep(tmp_path, "2000-02-02-new.json", started="2000-02-02T00:00:00")
    _keep(tmp_path, "2000-01-03-cpu.json", slug="cpu-x")
    folder = tmp_path / "bench/results"
    names = [file.name for file in newest_of_each_device(folder)]
    assert names == ["2000-02-02-new.json", "2000-01-03-cpu.json"]
    text = render(_marked("training"), folder)
    assert text.index("bench/results/synthetic/2000-02-02-new.json") < text.index("results/cpu-x")
    assert "613,884, 6.75 GiB" in text
    assert "stale" not in text
    assert render(text, folder) == text


def test_every_table_is_made_of_rows_that_were_timed(tmp_path):
    rows = results()["rows"]
    ours = [row for row in rows if row["variant"] == "triton"]
    rows = [not_timed(row, "failed", "wrong result") if row in ours else row for row in rows]
    _keep(tmp_path, "2000-01-01-a.json", rows=rows)
    tables = ("training", "ladder", "largest_batch", "attention", "kernels", "losses")
    text = render(_marked(*tables), tmp_path / "bench/results")
    assert text.count("2000-01-01-a.json") == len(tables)
    assert not re.search(r"\b(nan|None|null)\b", text, flags=re.IGNORECASE)
    for table in re.findall(r"((?:^\|.*\n)+)", text, flags=re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1
    cells = {line.split(" | ")[0].removeprefix("| ") for line in text.splitlines()}
    assert "ours" not in cells  # the label of "triton"
    assert "ours, in PyTorch" in cells


def test_what_is_computed_needs_no_results_and_the_other_tables_say_that_there_are_none(tmp_path):
    assert NO_RESULTS in render(_marked("attention"), tmp_path)
    text = render(_marked("accounting"), tmp_path)
    assert "python -m bench.estimate.accounting" in text
    assert "| all of ours |" in text
    assert render(text, tmp_path) == text


def test_an_unknown_table_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"bench:speeed.*choose one of training"):
        render(_marked("speeed"), tmp_path)


def test_one_command_writes_tables_and_plots(tmp_path):
    rungs = [row for row in results()["rows"] if row["case"].get("ladder")]
    file = _keep(tmp_path, "2000-01-01-a.json", rows=rungs)
    readme = tmp_path / "README.md"
    readme.write_text(_marked("ladder"))
    main(Arguments(write=True, texts=(readme,), results=tmp_path / "bench/results"))
    assert "| + torch.compile | 560,000 | x 1.33 | 4.99 GiB |" in readme.read_text()
    assert (file.parent / "ladder.svg").exists()
    for row in rungs:
        row["metrics"].pop("peak_memory_bytes", None)
    _keep(tmp_path, "2000-01-02-a.json", rows=rungs)
    assert "| tokens/s | gain |\n" in render(readme.read_text(), file.parents[1])
