"""Help of commands, and what a mistyped option is answered with."""

import dataclasses
import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest
import tyro

from gpt2.common.cli import given_options, help_text
from gpt2.config import RUN_DEFAULTS, TrainConfig, decided_by_preset
from tests.gpt2.stand_ins import ROOT, run_here

TOOLS = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for path in sorted((ROOT / "gpt2").rglob("*.py"))
    if "run_tool(main, Arguments" in path.read_text() and path.stem != "lm_eval_adapter"
]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_help_keeps_examples_and_says_what_decides_at_every_width(width):
    examples = "Train.\n\npython train.py                     the demo\npython train.py --data x"
    text = help_text(TrainConfig, examples, decided_by_preset(), width)
    assert text.startswith(f"{examples}\n\n")
    assert "[None]" not in text
    options = re.findall(r"^    --([a-z0-9-]+)", text, re.MULTILINE)
    fields = {field.name.replace("_", "-") for field in dataclasses.fields(TrainConfig)}
    assert len(options) == len(fields) - 1
    assert set(options) == fields - {"extended-at"}
    headings = re.findall(r"^[a-z][a-z ]*$", text, re.MULTILINE)
    assert headings == [
        "text", "optimisation", "machine", "run folder", "model", "kernels", "options",
    ]  # fmt: skip
    for line in text.partition("\n\n")[2].partition("\n\n")[2].splitlines():
        assert len(line) <= width or " " not in line.strip() or line.startswith("    --")
    joined = " ".join(text.split())
    for preset in ("demo", "gpt2-xl"):
        assert re.search(rf"by preset: [^]]*{preset} {RUN_DEFAULTS[preset]['steps']}\b", joined)


@pytest.mark.parametrize("module", TOOLS)
def test_every_tool_documents_every_option(module):
    name = module if (ROOT / f"{module.replace('.', '/')}.py").is_file() else f"{module}.__main__"
    text = help_text(import_module(name).Arguments, "", {}, 100)
    for entry in re.split(r"\n(?=    \S)", text)[1:]:
        assert len(entry.split("\n")) > 1, entry


def test_a_mistyped_option_is_answered_with_the_nearest(monkeypatch, tmp_path, capsys):
    for wrong, near in {"--batchsize": "--batch-size", "--resum": "--resume"}.items():
        assert run_here(monkeypatch, tmp_path, str(ROOT / "train.py"), wrong, "3") == 2
        assert near in capsys.readouterr().err.partition("Perhaps you meant")[2]


def test_options_that_are_given_are_known_whatever_their_values(monkeypatch):
    words = ["train.py", "--resume", "run", "--no-compile", "--on-spike=warn", "--n_head", "4"]
    monkeypatch.setattr("sys.argv", words)
    assert given_options(TrainConfig) == {"resume", "compile", "on_spike", "n_head"}


def test_headings_flags_and_defaults_are_as_the_source_has_them():
    text = help_text(Example, "A tool.", {"size": "by weather: 3"}, 80)
    assert text == EXPECTED


@dataclass
class Example:
    # --- first things ---
    path: tyro.conf.Positional[Path]
    """A path."""
    size: int | None = None
    """A size. None: the preset's."""
    # --- the rest: of them ---
    quick: bool = False
    """Be quick."""
    hidden: tyro.conf.Suppress[int] = 0
    """Not shown."""


EXPECTED = """\
A tool.

what to work on
    PATH
        A path. [required]

first things
    --size INT
        A size. [by weather: 3]

the rest
    --quick, --no-quick
        Be quick. [off]

options
    -h, --help
        Show this."""
