"""`python -m gpt2.export`: write a model in Hugging Face's GPT-2 format, or in GGUF."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from gpt2.common.cli import run_tool
from gpt2.common.devices import DTYPES
from gpt2.export.card import model_card
from gpt2.weights.export import Format, export
from gpt2.weights.gguf_file import GGUF_FILE
from gpt2.weights.hub import REPOSITORY, push
from gpt2.weights.open_model import open_model


@dataclass(frozen=True)
class Arguments:
    """Write a model in Hugging Face's GPT-2 format, or in GGUF."""

    run: Positional[str]
    """Run folder of `python train.py`; folder in Hugging Face's GPT-2 format; demo, the model that
    ships with this code; or a model of the Hugging Face hub, such as gpt2."""
    out: str
    """Folder to write; must not exist, or be empty."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Type of the stored weights: fp32 is exact, the others take half its size."""
    format: Format = "hugging-face"
    """hugging-face, or gguf for llama.cpp and what is built on it (extra gguf)."""
    checkpoint: str = "best"
    """Of a run folder: best, last, or the number of a step."""
    license: str = "unknown"
    """License of the weights, for the model card: the hub's name of it, such as mit."""
    push: str | None = None
    """OWNER/NAME: upload the folder to this model of the hub (extra hub), by the token of `hf auth
    login`. A model that is not there yet is made, and is private."""


def main(arguments: Arguments) -> None:
    if arguments.push is not None and not REPOSITORY.fullmatch(arguments.push):
        raise ValueError(f"--push {arguments.push} is no model of the hub: give OWNER/NAME")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", arguments.license):
        raise ValueError(f"--license {arguments.license}: give the hub's name of it, such as mit")
    run = open_model(arguments.run, checkpoint=arguments.checkpoint, device="cpu")
    size = export(
        run.model,
        run.tokenizer,
        arguments.out,
        dtype=DTYPES[arguments.dtype],
        file_format=arguments.format,
        card=model_card(
            run,
            Path(arguments.out).resolve().name,
            dtype=arguments.dtype,
            file_format=arguments.format,
            license_name=arguments.license,
        ),
    )
    use = f"transformers.AutoModelForCausalLM.from_pretrained({arguments.out!r})"
    if arguments.format == "gguf":
        use = f"llama-cli -m {Path(arguments.out) / GGUF_FILE}"
    print(
        f"{run} written to {arguments.out} ({size / 1e6:.1f} MB of {arguments.dtype}). {use} "
        "loads it"
    )
    if arguments.push is not None:
        print(f"uploaded: {push(Path(arguments.out), arguments.push)}")


if __name__ == "__main__":
    run_tool(main, Arguments)
