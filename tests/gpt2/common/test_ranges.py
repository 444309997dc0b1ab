"""gpt2.common.ranges: every number of every command has a range, and is refused outside of it."""

import ast
import dataclasses
import math
import re

import pytest

from gpt2.common.cli import run_tool
from gpt2.common.ranges import RANGES, check_numbers
from gpt2.config import TrainConfig
from gpt2.training.run_training import make_plan
from tests.gpt2.stand_ins import ROOT


def numbers() -> set[str]:
    """The options of all commands whose type has a number in it, from the source text."""
    found = set()
    rooms = ("gpt2", "bench", "tests/campaigns")
    for path in (path for room in rooms for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name in OPTIONS:
                for field in node.body:
                    if isinstance(field, ast.AnnAssign):
                        kind = ast.unparse(field.annotation)
                        if re.search(r"\b(int|float)\b", kind):
                            found.add(ast.unparse(field.target))
    return found


OPTIONS = ("Arguments", "Options", "TrainConfig", "RunOptions", "ModelOptions", "GPTConfig")


def test_the_table_has_the_numbers_of_all_commands_and_no_others():
    assert RANGES.keys() - {"model_vocab_size"} == numbers()


@pytest.mark.parametrize("name", RANGES)
def test_a_range_ends_where_it_says(name):
    own = RANGES[name]
    options = dataclasses.make_dataclass("Options", [(name, object)])
    inside = {own.low if not own.above else math.nextafter(own.low, 2)}
    inside |= {own.high if not own.below else math.nextafter(own.high, 0)}
    outside = {own.low if own.above else own.low - 1, own.high if own.below else own.high * 2}
    for value in inside:
        check_numbers(options(value))
        check_numbers(options((value, value)))
    for value in outside | {math.nan, math.inf, -math.inf}:
        for given in (value, (own.high if not own.below else own.low, value)):
            with pytest.raises(ValueError, match=rf"^--{name.replace('_', '-')} must be .* got "):
                check_numbers(options(given))
    assert bool(own.zero) == (0 in own and name != "seed")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1, "--seed must be at least 0, got -1"),
        (10**20, "--seed must be at most 9,223,372,036,854,775,807, got 100000000000000000000"),
    ],
)
def test_the_end_that_was_passed_is_told(value, message):
    with pytest.raises(ValueError, match=message):
        check_numbers(TrainConfig(seed=value))


def test_numbers_are_refused_before_anything_is_done(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train.py", "--log-every", "0"])
    with pytest.raises(SystemExit, match="2"):
        run_tool(lambda options: pytest.fail("it began"), TrainConfig)
    assert capsys.readouterr().err == "error: --log-every must be at least 1, got 0\n"
    with pytest.raises(ValueError, match="--keep must be at least 1, got -1"):
        make_plan(TrainConfig(keep=-1, init_from="no such model"))
