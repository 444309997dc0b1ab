"""The end of a run: the test split scored, samples by each strategy, result.json."""

import dataclasses
import datetime
import itertools
import json
from typing import Any

import torch

from gpt2.common.devices import device_name
from gpt2.common.distributed import say
from gpt2.common.files import write_json
from gpt2.config import PORTABLE, Settings
from gpt2.data.manifest import MANIFEST
from gpt2.data.prepare import Prepared
from gpt2.evaluate.perplexity import evaluate
from gpt2.generate.decoding import generate
from gpt2.generate.sampling import Sampling
from gpt2.model import GPT
from gpt2.runs.metrics import plot_loss
from gpt2.tokenizer import Tokenizer
from gpt2.training.machine import interpreted, peak_memory
from gpt2.training.trainer import Trainer

STRATEGIES = {
    "greedy": Sampling(temperature=0),
    "top-k (k = 50)": Sampling(top_k=50),
    "nucleus (p = 0.9)": Sampling(top_p=0.9),
}
_PROMPT_TOKENS = 12
_HEADING_TOKENS = 200  # where prose may begin behind title, author and chapter


def report(trainer: Trainer, prepared: Prepared, *, trained: bool = True) -> None:
    """Score the test split and print samples with the best weights; keep both in result.json.

    Args:
        trainer: after its last step.
        prepared: the text that it trained on.
        trained: whether steps were taken in this process, so that its memory tells what they took.
    """
    peak, memory = None, "not measured, as training ended in another process"
    if trained:
        peak, memory = peak_memory(trainer.machine.device)
    model, step = trainer.best_model()
    model.eval()
    if interpreted(trainer.machine.device, model.config):
        say("\nscoring and samples by PyTorch's kernels, which are faster than the interpreter")
        model.use(**PORTABLE)
    tokenizer = prepared.tokenizer
    say(f"\nbest validation loss {trainer.best_val_loss:.4f} at step {step:,}; with its weights:")
    result: dict[str, Any] = {"step": step, "val_loss": trainer.best_val_loss}
    if "test" in prepared.splits:
        test = evaluate(
            model,
            prepared.splits["test"],
            bos_id=tokenizer.eot_id,
            batch_size=trainer.batches.batch_size,
            autocast=trainer.machine.autocast(),
            progress=True,
        )
        say(f"test: {test}")
        result["test"] = dataclasses.asdict(test)
    text = beginning(prepared)
    say(f"\nsamples that continue the beginning of unseen text, {text!r}:")
    result["prompt"] = text
    result["samples"] = samples(model, tokenizer, text, trainer.settings)
    for name, continuation in result["samples"].items():
        say(f"--- {name}\n{text}{continuation}")
    result["data"] = _data(prepared)
    result["machine"] = {
        "device": device_name(trainer.machine.device),
        "dtype": str(trainer.machine.dtype).removeprefix("torch."),
        "compile": trainer.machine.compile,
        "torch": torch.__version__,
        "peak_memory_bytes": peak,
        "memory": memory,
    }
    now = datetime.datetime.now(datetime.timezone.utc)
    result["finished"] = now.isoformat(timespec="seconds")
    write_json(trainer.folder / "result.json", result)
    say(f"\nloss curve: {plot_loss(trainer.folder)}")


def samples(model: GPT, tokenizer: Tokenizer, text: str, settings: Settings) -> dict[str, str]:
    """Continue a text by each strategy, always with the same random numbers."""
    device = model.wte.weight.device
    prompt = tokenizer.encode(text)[-model.config.block_size :] or [tokenizer.eot_id]
    found = {}
    for name, sampling in STRATEGIES.items():
        ids = generate(
            model,
            torch.tensor([prompt], device=device),
            settings.sample_tokens,
            **dataclasses.asdict(sampling),
            generator=torch.Generator(device).manual_seed(settings.seed),
            stop_id=tokenizer.eot_id,
        )[0].tolist()
        found[name] = tokenizer.decode(i for i in ids[len(prompt) :] if i != tokenizer.eot_id)
    return found


def _data(prepared: Prepared) -> dict[str, Any]:
    """Describe the text, so that the run folder says it without the data cache."""
    manifest = json.loads((prepared.folder / MANIFEST).read_text(encoding="utf-8"))
    splits = {
        name: {"tokens": len(s), "documents": s.n_documents, "bytes": s.n_bytes}
        for name, s in prepared.splits.items()
    }
    return {"name": prepared.name, "held_out": manifest["held_out"], "splits": splits}


def beginning(prepared: Prepared) -> str:
    """Return the first whole words of the first held-out document, headings left out."""
    tokenizer = prepared.tokenizer
    split = prepared.splits.get("test", prepared.splits["valid"])
    ids = split.read(0, min(_HEADING_TOKENS, len(split))).tolist()
    if tokenizer.eot_id in ids:
        ids = ids[: ids.index(tokenizer.eot_id)]
    lines = tokenizer.decode(ids).splitlines(keepends=True)
    prose = itertools.dropwhile(lambda line: not line.strip(" -\n") or line[0] in "#=", lines)
    text = "".join(prose) or "".join(lines)
    ids = tokenizer.encode(text)
    text = tokenizer.decode(ids[:_PROMPT_TOKENS])
    return text if len(ids) <= _PROMPT_TOKENS else text.rpartition(" ")[0] or text
