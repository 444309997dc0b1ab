"""Text from a trained model, by greedy decoding or sampling, with a key-value cache.

    python -m gpt2.generate runs/demo --prompt "Once upon a time" --strategy top-p --top-p 0.9
    python -m gpt2.generate runs/demo --prompt-file prompts.txt --samples 3 --seed 7
    python -m gpt2.generate gpt2 --interactive

The strategies are in gpt2/generate/sampling.py, the rule for texts longer than the context in
gpt2/generate/decoding.py. A prompt that is itself longer than learned positions reach is refused.
"""

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from tyro.conf import Positional, UseAppendAction

from gpt2.common.cli import given_options, run_tool
from gpt2.common.devices import DTYPES
from gpt2.data.readers import file_format, read_blocks, read_texts
from gpt2.generate.decoding import check_prompts, continuations, generate, stream_tokens, until
from gpt2.generate.interactive import Settings, Strategy, converse
from gpt2.generate.sampling import Sampling
from gpt2.model import GPT

if TYPE_CHECKING:
    from gpt2.runs.run import Run


@dataclass(frozen=True)
class Arguments:
    """Continue prompts with a trained model. One continuation appears as it is made; several are
    made together, a batch at a time."""

    run: Positional[str]
    """Run folder of `python train.py`; folder in Hugging Face's GPT-2 format; demo, the model that
    ships with this code; or a model of the Hugging Face hub, such as gpt2."""
    prompt: UseAppendAction[tuple[str, ...]] = ()
    """Text to continue; may be given several times. None, an empty one or <|endoftext|>: a new
    document."""
    prompt_file: str | None = None
    """File with a prompt on each line, or a table (.jsonl, .csv, .parquet) with a prompt in the
    field "text" of each row; blank ones are left out."""
    interactive: bool = False
    """Write with the model in turns: it goes on from what you type, and keeps keys and values
    between turns. /temperature 0.7 and the like change a setting, /help lists them; Ctrl-C stops an
    answer."""
    strategy: Strategy = "top-p"
    """greedy, sample (the whole distribution), top-k, top-p or min-p."""
    top_k: int = 50
    """For top-k: how many tokens to draw from."""
    top_p: float = 0.9
    """For top-p: the probability that the tokens to draw from hold together."""
    min_p: float = 0.1
    """For min-p: the least probability to draw from, as a share of the largest."""
    temperature: float = 1.0
    """Below 1 sharper, above 1 flatter; for all strategies but greedy."""
    repetition_penalty: float = 1.0
    """Above 1 (1.2 is usual) tokens of the prompt and the continuation become less likely."""
    max_tokens: int = 200
    """Tokens to make at most; the end of the document ends it earlier. A prompt must fit the
    context, and the text may outgrow it: then learned positions drop the older half of the context
    and encode the rest anew, and sinusoidal ones go on."""
    samples: int = 1
    """How many continuations of each prompt."""
    seed: int = 1337
    """Seed of the first sample of a prompt; the next has the next number. What a prompt is sampled
    to does not depend on the other prompts."""
    batch_size: int = 16
    """Continuations that are made at a time."""
    cache: bool = True
    """Keep keys and values, so that a token costs one token. The text is the same without."""
    checkpoint: str = "best"
    """Of a run folder: best, last, or the number of a step."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Number type of weights, keys and values: bf16 takes half the memory, and is slower on a CPU
    without --compile."""
    compile: bool = False
    """torch.compile the next token of one text, on a CPU; that needs a C++ compiler."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""


# The strategies that heed a setting.
_HEEDED_BY: dict[str, tuple[Strategy, ...]] = {
    "top_k": ("top-k",),
    "top_p": ("top-p",),
    "min_p": ("min-p",),
    "temperature": ("sample", "top-k", "top-p", "min-p"),
}


def main(arguments: Arguments) -> None:
    from gpt2.weights.open_model import open_model

    for name in _HEEDED_BY.keys() & given_options(Arguments):
        if arguments.strategy not in _HEEDED_BY[name]:
            raise ValueError(
                f"--{name.replace('_', '-')} means nothing to --strategy {arguments.strategy}: "
                f"leave it out, or choose {' or '.join(_HEEDED_BY[name])}"
            )
    settings = Settings(**{f.name: getattr(arguments, f.name) for f in fields(Settings)})
    sampling = settings.sampling()
    if arguments.interactive and (arguments.prompt_file or len(arguments.prompt) > 1):
        raise ValueError("--interactive continues one text: give at most one --prompt")
    if arguments.interactive and (arguments.samples > 1 or not arguments.cache):
        raise ValueError("--interactive continues one text by the cache: no --samples, --no-cache")
    prompts = _read_prompts(arguments)
    if arguments.compile and (len(prompts) * arguments.samples > 1 or not arguments.cache):
        raise ValueError(
            "--compile is for one text and its cache: one prompt, no --samples, --no-cache"
        )
    run = open_model(arguments.run, checkpoint=arguments.checkpoint, device=arguments.device)
    ids = [run.tokenizer.encode_prompt(prompt) for prompt in prompts]
    check_prompts(run.model, ids)
    run.model.to(DTYPES[arguments.dtype])
    if arguments.compile:
        _compile(run.model)
    if arguments.interactive:
        generator = _generators(run.model, arguments.seed, [0])[0]
        converse(run, settings, generator, "".join(prompts))
    elif len(prompts) == arguments.samples == 1:
        _stream(run, sampling, prompts[0], ids[0], arguments)
    else:
        _write(run, sampling, prompts, ids, arguments)


def _compile(model: GPT) -> None:
    """Compile the step of one token by making one."""
    from torch._dynamo.exc import BackendCompilerFailed  # takes seconds

    device = model.wte.weight.device
    if device.type != "cpu":
        raise ValueError(f"--compile is for a CPU, and the model is on {device}: add --device cpu")
    note = (
        "torch.compile: on (it takes 10 to 30 seconds, and a few once PyTorch has kept the result)"
    )
    print(note, file=sys.stderr, flush=True)
    model.compile_next_token()
    try:
        generate(model, torch.zeros(1, 1, dtype=torch.long), 2, temperature=0)
    except BackendCompilerFailed as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"torch.compile failed: {reason}; leave --compile out") from error


def _read_prompts(arguments: Arguments) -> list[str]:
    if arguments.prompt_file is None:
        return list(arguments.prompt) or [""]
    if arguments.prompt:
        raise ValueError("--prompt and --prompt-file both give prompts: use one of them")
    path = Path(arguments.prompt_file)
    if file_format(path) in (None, "text"):
        text = "".join(block for block, _ in read_blocks(path))
        prompts = text.replace("\r", "\n").split("\n")
    else:
        prompts = [text.replace("\r\n", "\n") for text, _ in read_texts(path)]
    prompts = [prompt for prompt in prompts if prompt.strip()]
    if not prompts:
        raise ValueError(f"{arguments.prompt_file} holds no prompt: write one on each line")
    return prompts


def _stream(
    run: "Run", sampling: Sampling, prompt: str, ids: list[int], arguments: Arguments
) -> None:
    """Print a continuation as it is made."""
    tokens = stream_tokens(
        run.model,
        [ids],
        arguments.max_tokens,
        sampling=sampling,
        generator=_generators(run.model, arguments.seed, [0]),
        use_cache=arguments.cache,
    )
    print(prompt, end="", flush=True)
    new = until((int(token) for token in tokens), run.tokenizer.eot_id)
    for text in run.tokenizer.decode_stream(new):
        print(text, end="", flush=True)
    print()


def _write(
    run: "Run",
    sampling: Sampling,
    prompts: Sequence[str],
    ids: Sequence[list[int]],
    arguments: Arguments,
) -> None:
    """Print all samples of all prompts, a batch at a time."""
    rows = list(itertools.product(range(len(prompts)), range(arguments.samples)))
    for start in range(0, len(rows), arguments.batch_size):
        batch = rows[start : start + arguments.batch_size]
        made = continuations(
            run.model,
            [ids[number] for number, _ in batch],
            arguments.max_tokens,
            sampling=sampling,
            generator=_generators(run.model, arguments.seed, [sample for _, sample in batch]),
            stop_id=run.tokenizer.eot_id,
            use_cache=arguments.cache,
            progress=sys.stderr.isatty(),
        )
        for (number, sample), new in zip(batch, made, strict=True):
            print(f"--- prompt {number + 1}, sample {sample + 1}")
            print(prompts[number] + run.tokenizer.decode(new), flush=True)


def _generators(model: GPT, seed: int, samples: Sequence[int]) -> list[torch.Generator]:
    device = next(model.parameters()).device
    return [torch.Generator(device).manual_seed(seed + n) for n in samples]


if __name__ == "__main__":
    run_tool(main, Arguments)
