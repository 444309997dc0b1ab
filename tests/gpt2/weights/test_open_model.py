"""One way to open a model: run folder, demo, Hugging Face folder or hub, by each of the tools."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from gpt2.demo.model import facts
from gpt2.evaluate.__main__ import Arguments, main
from gpt2.tokenizer import Tokenizer
from gpt2.weights.export import export
from gpt2.weights.open_model import open_model
from tests.gpt2.data.hub_stand_in import hub
from tests.gpt2.stand_ins import STORIES, run_forked, write_run
from tests.gpt2.weights.test_pretrained import NOT_WANTED, needs_hub

# Each tool with its arguments, and what it prints of a model called {name}.
TOOLS = {
    "generate": (["--prompt", "Story", "--max-tokens", "3"], "Story"),
    "evaluate": (["--data", "stories.txt"], "{name} on stories, test: loss"),
    "export": (["--out", "exported-{name}"], "{name} written to exported-{name}"),
    "compare_decoding": (
        [
            *("--data", "stories.txt", "--split", "train"),
            *("--prompts", "3", "--prompt-tokens", "8", "--max-tokens", "8"),
        ],
        "written to runs/{name}-decoding",
    ),
}
# Runs tools one after another in one process, and prints the status and the output of each.
RUN_TOOLS = """
import contextlib, io, json, runpy, sys
for tool, *words in json.loads(sys.argv[1]):
    sys.argv = [tool, *words, "--device", "cpu"][: None if tool != "export" else -2]
    status = 0
    with contextlib.redirect_stdout(io.StringIO()) as output:
        try:
            runpy.run_module(f"gpt2.{tool}", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            status = end.code
    print(json.dumps([status, output.getvalue()]))
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A text, a run folder, and its model in Hugging Face's format."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "stories.txt").write_text(STORIES, encoding="utf-8")
    tokenizer = Tokenizer.train([STORIES], 280, processes=1)
    model = write_run(folder / "run", folder / "stories.txt", tokenizer, block_size=32)
    export(model, tokenizer, folder / "weights")
    return folder


def test_a_run_and_its_export_are_the_same_model(workplace):
    run, weights = (open_model(workplace / name, device="cpu") for name in ("run", "weights"))
    for name, parameter in run.model.named_parameters():
        assert torch.equal(parameter, weights.model.get_parameter(name)), name
    assert run.tokenizer.hash == weights.tokenizer.hash
    assert (str(run), str(weights)) == (f"{workplace}/run step 7", f"{workplace}/weights")
    assert run.config is not None
    assert run.choose_data(None, None)["data"] == str(workplace / "stories.txt")
    assert weights.config is weights.step is None
    assert not run.model.training
    assert not weights.model.training


@needs_hub
def test_each_tool_opens_a_model_by_each_of_its_names(workplace, tmp_path):
    files = {path.name: path.read_bytes() for path in (workplace / "weights").iterdir()}
    titles = {"run": "run step 7", "weights": "weights", "demo": "demo step 7800", "gpt2": "gpt2"}
    jobs = [
        [tool, name, *(word.format(name=name) for word in words)]
        for name in titles
        for tool, (words, _) in TOOLS.items()
        if tool != "compare_decoding" or name == "gpt2"  # which takes long
    ]
    with hub({"openai-community/gpt2": files | NOT_WANTED}, "models") as (address, sent):
        own = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path)}
        done = run_forked("-c", RUN_TOOLS, json.dumps(jobs), cwd=workplace, **own)
    assert done.returncode == 0, done.stderr
    assert set(sent) >= {"config.json", "tokenizer.json", "model.safetensors"}
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for (tool, name, *_), (status, output) in zip(jobs, answers, strict=True):
        assert status == 0, (tool, name, done.stderr)
        expected = TOOLS[tool][1].replace("{name} ", f"{titles[name]} ").format(name=name)
        assert expected in output, (tool, name)


def test_what_weights_alone_do_not_have_is_asked_for(workplace, tmp_path, monkeypatch):
    monkeypatch.chdir(workplace)
    for name in ("weights", "demo"):
        with pytest.raises(ValueError, match=f"--checkpoint last: {name} is no run folder"):
            open_model(name, checkpoint="last")
    with pytest.raises(ValueError, match=r"weights does not record .* choose a text with --data"):
        main(Arguments("weights", device="cpu"))
    with pytest.raises(
        ValueError, match=r"demo was trained on books, .* choose a text with --data"
    ):
        main(Arguments("demo", device="cpu"))
    main(Arguments("demo", data=str(workplace / "stories.txt"), limit=50, device="cpu"))
    shutil.copytree("weights", tmp_path / "other")
    Tokenizer.train([STORIES], 270, processes=1).save(tmp_path / "other/tokenizer.json")
    with pytest.raises(ValueError, match=r"other has 270 tokens, and .*other has 280: put"):
        open_model(tmp_path / "other")


def test_a_mistyped_path_does_not_go_to_the_hub(workplace, monkeypatch):
    monkeypatch.chdir(workplace.parent)
    with pytest.raises(ValueError, match="rnu does not exist: give a folder of a run"):
        open_model(f"{workplace.name}/rnu")


def test_the_page_has_the_facts_of_any_model(workplace):
    shape = {"parameters": "8,304", "layers, heads, width": "1, 2, 16"}
    shape |= {"context": "32 tokens", "vocabulary": "280 tokens"}
    assert facts(open_model(workplace / "weights", device="cpu")) == shape
    shipped = facts(open_model("demo", device="cpu"))
    assert shipped["step"] == "7,800"
    assert "perplexity" in shipped["test"]
