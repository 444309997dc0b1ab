"""The README.md of an assignment: its figures, its files, and the commands that use them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt2.common.files import atomic_write
from gpt2.common.json_files import read_json_object
from gpt2.report.sources import read_run
from gpt2.report.text import duration

_FILES = {
    "report.pdf": "the report",
    "demo.png": "the demo page with the model's texts",
    "evaluation.json": "the test split scored once more, each token after half a context or more",
    "decoding/decoding.md": "decoding strategies compared, with their texts",
    "sizes/sizes.md": "the sizes compared, with their texts",
    "plan.json": "what was asked, and what was planned by the speed measured",
}


def write_readme(out: Path, model: Path, asked: Mapping[str, Any]) -> None:
    """Write `out`/README.md, from the files that lie there; `model` is the run folder in it."""
    run = read_run(model)
    test, scored = run.test, read_json_object(out / "evaluation.json")
    own = model.relative_to(out).as_posix()
    author = f" by {asked['author']}" if asked["author"] else ""
    lines = [
        f"# GPT-2 on {run.data_name}{author}",
        "",
        f"A model of {run.parameters:,} parameters, trained on {run.tokens:,} tokens in "
        f"{duration(run.seconds)}, with a vocabulary of {run.model.vocab_size:,} tokens.",
        "",
        "| test split | perplexity | bits per byte |",
        "| --- | ---: | ---: |",
        f"| windows of {test.context} tokens, one after the other | {test.perplexity:.2f} "
        f"| {test.bits_per_byte:.4f} |",
        f"| windows of {scored['context']} that overlap, stride {scored['stride']} "
        f"| {scored['perplexity']:.2f} | {scored['bits_per_byte']:.4f} |",
        "",
        "| file | content |",
        "| --- | --- |",
        *(
            f"| [{name}]({name}) | {what} |"
            for name, what in _FILES.items()
            if (out / name).exists()
        ),
        f"| {own} | the model: checkpoints, tokenizer, configuration, metrics |",
        "",
        "From the folder of the code:",
        "",
        "```sh",
        f'python -m gpt2.generate {model} --prompt "Once upon a time"',
        f"python -m gpt2.evaluate {model} --stride {scored['stride']}",
        f"python -m gpt2.demo {model}",
        "```",
    ]
    with atomic_write(out / "README.md") as file:
        file.write(("\n".join(lines) + "\n").encode())
