"""A notebook for Colab or Kaggle that makes the assignment there, by the same command.

    python -m gpt2.assignment.notebook --repository https://github.com/OWNER/NAME

It clones this code into the machine that it runs on, and installs it.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2.common.files import write_json

_INTRODUCTION = """\
# GPT-2 from a text to a report

Choose a GPU under *Runtime, Change runtime type*, then *Run all*. A cell that was interrupted goes
on when it is run again. `--minutes` scales the models to the time.
"""
_INSTALL = """\
import os

if not os.path.exists("train.py"):
    !git clone --depth 1 {repository} code
    %cd code
    !pip install -q -e '.[hub,report,demo]'
"""
_RUN = "!python -m gpt2.assignment --data {data} --minutes {minutes:g} --out submission"
_SHOW = """\
import shutil

from IPython.display import Image, Markdown, display

display(Markdown(open("submission/README.md").read()))
for name in ("sizes/loss_tokens.png", "decoding/decoding.png"):
    display(Image(f"submission/{name}"))
print(shutil.make_archive("submission", "zip", "submission"), "is all of it, to download")
"""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Write a notebook that makes the assignment on Colab or Kaggle."""

    repository: str
    """Where this code is cloned from."""
    data: str = "tinystories"
    """What gpt2.assignment's --data takes."""
    minutes: float = 30.0
    """Time for all of it."""
    out: Path = Path("assignment.ipynb")
    """File to write."""


def main(arguments: Arguments) -> None:
    words = {"repository": shlex.quote(arguments.repository), "data": shlex.quote(arguments.data)}
    code = [
        _INSTALL.replace("{repository}", words["repository"]),
        _RUN.format(data=words["data"], minutes=arguments.minutes),
        _SHOW,
    ]
    cells = [_cell("markdown", _INTRODUCTION), *(_cell("code", text) for text in code)]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel, "accelerator": "GPU", "colab": {"gpuType": "T4"}}
    write_json(
        arguments.out, {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    )
    print(arguments.out)


def _cell(kind: str, text: str) -> dict[str, Any]:
    cell: dict[str, Any] = {"cell_type": kind, "metadata": {}, "source": text}
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {})


if __name__ == "__main__":
    from gpt2.common.cli import run_tool

    run_tool(main, Arguments)
