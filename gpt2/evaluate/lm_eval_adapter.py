"""Score a model with EleutherAI's lm-eval (the extra `lm-eval`).

    python -m gpt2.evaluate.lm_eval_adapter runs/demo --tasks lambada_openai,hellaswag

or from Python, where importing this module registers the model as "gpt2-run":

    import gpt2.evaluate.lm_eval_adapter, lm_eval
    lm_eval.simple_evaluate(model="gpt2-run", model_args="run=runs/demo", tasks=["lambada_openai"])

Protocol, as of lm-eval's own models of transformers: texts longer than the context lose their
beginning, and prompts all that leaves no room for the new tokens; an empty context is
<|endoftext|>; rolling log-likelihoods start from it and go on in whole contexts without overlap,
the last one looking further back. Nothing but the tokens of the text stands before a context that
is not empty. A task that samples draws from all tokens unless it names a cut; transformers would
take the 50 most probable ones.

lm-eval imports transformers, for its version, and transformers looks for a package `kernels`, finds
this project's and, as that states version 0, does without. Where the package of that name from
PyPI is installed too, transformers takes this project's for it, and its models cannot be imported:
runs are scored all the same, but a task that needs such a model wants another environment. (Checked
with lm-eval 0.4.13, transformers 5.23 and a package that states version 0.18.3.)
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from tyro.conf import Positional

from gpt2.common.files import write_json
from gpt2.evaluate.scoring import Request, Scores, score
from gpt2.generate.decoding import continuations
from gpt2.generate.sampling import Sampling
from gpt2.tokenizer.bpe import END_OF_TEXT
from gpt2.weights.open_model import open_model

try:
    import lm_eval
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import (
        handle_stop_sequences,
        normalize_gen_kwargs,
        postprocess_generated_text,
    )
except ImportError as error:
    ADVICE = "scoring with lm-eval needs the package lm_eval: pip install -e '.[lm-eval]'"
    if __name__ != "__main__":
        raise ImportError(ADVICE) from error
    print(f"error: {ADVICE}", file=sys.stderr)
    sys.exit(2)

_MAX_NEW_TOKENS = 256  # lm-eval's default where a task names none
_RULES = ("top_k", "top_p", "min_p", "repetition_penalty")


@register_model("gpt2-run")
class RunLM(TemplateLM):
    """A model as lm-eval uses it.

    Args:
        run: run folder, Hugging Face folder, "demo" or a model of the hub, as for `open_model`.
        checkpoint: "best", "last" or the number of a step.
        batch_size: sequences per forward pass.
        device: "auto", "cpu", "cuda" or "mps".
        seed: of tasks that sample.
        max_batch_size: passed on by lm-eval, and ignored: batches do not grow by themselves.

    Raises:
        ValueError: no such model, or a batch size that is no number above 0.
    """

    def __init__(
        self,
        run: str | Path,
        checkpoint: str = "best",
        batch_size: int | str = 16,
        device: str | None = "auto",
        seed: int = 1337,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ValueError(f"the batch size must be a number above 0, got {batch_size}")
        loaded = open_model(run, checkpoint=str(checkpoint), device=device or "auto")
        self.model, self.run_tokenizer, self.name = loaded.model, loaded.tokenizer, str(loaded)
        self.batch_size = int(batch_size)
        self._device = next(self.model.parameters()).device
        self._generator = torch.Generator(self._device).manual_seed(seed)

    @property
    def eot_token_id(self) -> int:
        return self.run_tokenizer.eot_id

    @property
    def max_length(self) -> int:
        return self.model.config.block_size

    @property
    def tokenizer_name(self) -> str:
        return f"gpt2-run-{self.run_tokenizer.hash[:16]}"

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        return self.run_tokenizer.encode(string)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        # Of a context that is all spaces lm-eval leaves nothing.
        pairs = [(before or [self.prefix_token_id], text) for _, before, text in requests]
        asked = [Request([*before, *text], first=len(before)) for before, text in pairs]
        scores = self._score(asked, disable_tqdm)
        return [(s.total, bool(s.greedy.all())) for s in scores]

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        texts = [self.tok_encode(request.args[0]) for request in requests]
        asked = [Request([self.prefix_token_id, *ids], first=1) for ids in texts]
        return [s.total for s in self._score(asked, disable_tqdm)]

    def _score(self, requests: Sequence[Request], quiet: bool) -> list[Scores]:
        return score(self.model, requests, batch_size=self.batch_size, progress=not quiet)

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continuations up to, and without, the first stop string or <|endoftext|>.

        Raises:
            ValueError: a task asks for beam search, for an option that is unknown here, or for so
                many new tokens that the context has no room for a prompt.
        """
        options = [_generation_options(request.args[1]) for request in requests]
        prompts = [
            self._prompt(request.args[0], length)
            for request, (_, length, _) in zip(requests, options, strict=True)
        ]
        texts = [""] * len(requests)
        order = sorted(range(len(requests)), key=lambda i: repr(options[i]))
        for _, alike in groupby(order, key=lambda i: repr(options[i])):
            group = list(alike)
            for start in range(0, len(group), self.batch_size):
                rows = group[start : start + self.batch_size]
                sampling, length, until = options[rows[0]]
                made = continuations(
                    self.model,
                    [prompts[i] for i in rows],
                    length,
                    sampling=sampling,
                    generator=self._generator,
                    stop_id=self.eot_token_id,
                )
                for i, ids in zip(rows, made, strict=True):
                    text = self.run_tokenizer.decode(ids)
                    texts[i] = postprocess_generated_text(text, until, None)
        return texts

    def _prompt(self, text: str, length: int) -> list[int]:
        """The last tokens of a text that leave room for `length` more in the context."""
        room = self.max_length - length
        if room < 1:
            raise ValueError(
                f"the task asks for up to {length:,} new tokens, and a context of "
                f"{self.max_length:,} has no room for a prompt beside them: let it make fewer, as "
                f"with --gen-kwargs max_gen_toks={self.max_length // 2}"
            )
        return (self.tok_encode(text) or [self.eot_token_id])[-room:]


def _generation_options(asked: dict[str, Any]) -> tuple[Sampling, int, list[str]]:
    """Translate a task's options: the sampling, the most tokens, and the stop strings."""
    options: dict[str, Any] = {**normalize_gen_kwargs(asked, _MAX_NEW_TOKENS)}
    until = handle_stop_sequences(options.pop("until"), END_OF_TEXT)
    length, sample = options.pop("max_gen_toks"), options.pop("do_sample")
    temperature = options.pop("temperature", 1.0)
    if options.pop("num_beams", 1) != 1:
        raise ValueError(
            f"the task asks for beam search (num_beams={asked['num_beams']}), which is not "
            "implemented here"
        )
    rules = {name: options.pop(name) for name in _RULES if name in options}
    if rules.get("top_k") == 0:  # in transformers: no cut
        del rules["top_k"]
    if options:
        raise ValueError(
            f"the task asks for {', '.join(sorted(options))} in generation; known here are until, "
            f"max_gen_toks, do_sample, temperature, {', '.join(_RULES)}"
        )
    return Sampling(temperature=float(temperature) if sample else 0.0, **rules), length, until


@dataclass(frozen=True)
class Arguments:
    """Score a model with lm-eval; its tasks are read from the Hugging Face hub."""

    run: Positional[str]
    """Run folder of `python train.py`; folder in Hugging Face's GPT-2 format; demo, the model that
    ships with this code; or a model of the Hugging Face hub, such as gpt2."""
    tasks: str
    """Names of lm-eval's tasks, with commas between them."""
    num_fewshot: int | None = None
    """Examples before each question; None: what the task says."""
    limit: int | None = None
    """Score only the first so many documents of each task."""
    gen_kwargs: str | None = None
    """Options of generation that replace the tasks' own, such as max_gen_toks=100,top_k=50."""
    include_path: str | None = None
    """Folder with further tasks, as lm-eval's YAML files."""
    out: str | None = None
    """Write lm-eval's results to this .json file."""
    checkpoint: str = "best"
    """Of a run folder: best, last, or the number of a step."""
    batch_size: int = 16
    """Sequences per forward pass."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    seed: int = 1337
    """Seed of tasks that sample."""


def main(arguments: Arguments) -> None:
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import make_table

    manager = TaskManager(include_path=arguments.include_path)
    names = arguments.tasks.split(",")
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        raise ValueError(
            f"lm-eval {lm_eval.__version__} has no task {', '.join(unknown)}: `lm-eval ls tasks` "
            "lists them"
        )
    model = RunLM(
        arguments.run,
        checkpoint=arguments.checkpoint,
        batch_size=arguments.batch_size,
        device=arguments.device,
        seed=arguments.seed,
    )
    try:
        results = lm_eval.simple_evaluate(
            model=model,
            tasks=names,
            num_fewshot=arguments.num_fewshot,
            limit=arguments.limit,
            gen_kwargs=arguments.gen_kwargs,
            task_manager=manager,
        )
    except OSError as error:
        raise ValueError(
            f"lm-eval could not read a task's data: {error}. Without a network, "
            "`python -m gpt2.evaluate --task` reads HellaSwag and LAMBADA from a file"
        ) from error
    print(f"{model.name}, lm-eval {lm_eval.__version__}")
    print(make_table(results))
    if arguments.out:
        kept = ("results", "versions", "n-shot", "n-samples", "configs", "higher_is_better")
        write_json(arguments.out, {key: results[key] for key in kept if key in results})


if __name__ == "__main__":
    from gpt2.common.cli import run_tool

    run_tool(main, Arguments)
