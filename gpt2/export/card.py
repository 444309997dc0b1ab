"""The model card, README.md of a model on the Hugging Face hub: data, tokens, perplexity."""

from pathlib import Path

from gpt2.config import Settings
from gpt2.model import count_parameters
from gpt2.runs.result import Score, Text, read_result
from gpt2.runs.run import Run
from gpt2.weights.export import Format
from gpt2.weights.gguf_file import GGUF_FILE

_USE = {
    "hugging-face": """```python
from transformers import pipeline

generator = pipeline("text-generation", "path/to/this/folder")
print(generator("Once upon a time")[0]["generated_text"])
```""",
    "gguf": f"""```sh
llama-cli -m {GGUF_FILE} -p "Once upon a time"
```""",
}


def model_card(run: Run, name: str, *, dtype: str, file_format: Format, license_name: str) -> str:
    """Write the card of an export; what the run does not record is said to be not recorded.

    Args:
        run: what is exported.
        name: heads the card.
        dtype, file_format: of the stored weights.
        license_name: of the weights, one of the hub's identifiers.

    Raises:
        ValueError: a result.json that is none.
    """
    config, result = run.model.config, read_result(run)
    return f"""---
license: {license_name}
library_name: {"transformers" if file_format == "hugging-face" else "gguf"}
pipeline_tag: text-generation
tags:
- gpt2
---

# {name}

A GPT-2 of {count_parameters(config):,} parameters ({config.n_layer} layers, {config.n_head} heads,
{config.n_embd} wide), for a context of {config.block_size:,} tokens of a byte-level BPE vocabulary
of {config.vocab_size:,}. Weights of `{Path(run.name).name}`{
        "" if run.step is None else f", step {run.step:,}"
    }, stored in {dtype}.

## Data and training

{_training(run.config, run.step, result.data if result else None)}

## Perplexity

{_perplexity(result.test if result else None)}

## Use

{_USE[file_format]}
"""


def _training(train: Settings | None, step: int | None, text: Text | None) -> str:
    if train is None or step is None:
        return "Not recorded with these weights."
    per_step = train.sequences_per_step * train.seq_len
    tokens = step * per_step
    trained = f"- Trained on {tokens:,} tokens: {step:,} steps of {per_step:,}"
    lines = []
    if text is None:
        lines.append(f"- Data: `{Path(train.data).name}`.")
    else:
        size = text.splits["train"]
        lines.append(
            f"- Data: `{text.name}`, {size.tokens:,} tokens, {size.documents:,} documents and "
            f"{size.bytes:,} bytes of text for training."
        )
        if text.held_out:
            lines.append(f"- Held out: {text.held_out}.")
        trained += f", {tokens / size.tokens:.2f} epochs"
    lines.append(f"{trained}, by {train.optimizer}.")
    if train.init_from is not None:
        lines.append(f"- It began from the weights of `{Path(train.init_from).name}`.")
    return "\n".join(lines)


def _perplexity(test: Score | None) -> str:
    if test is None:
        return "Not measured with these weights."
    return f"""**{test.perplexity:.2f}** on the test split: {test.loss:.4f} nats per token, {
        test.bits_per_byte:.4f} bits per byte.

Protocol: each of {test.tokens:,} tokens is scored once, in the first window that holds it; windows
of {test.context:,} tokens begin {test.stride:,} tokens apart, and `<|endoftext|>` stands before
the first token. Perplexity is per token of this vocabulary; bits per byte can be compared between
vocabularies."""
