"""The facts of a report as plain JSON, every number formatted, for report.typ to set in text."""

import dataclasses
import inspect
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpt2.common.devices import human_bytes
from gpt2.compare_decoding.report import cells
from gpt2.layers import LayerNorm, QuickNorm
from gpt2.report.findings import discuss, embedding_share, train_loss
from gpt2.report.result_files import Bench, Contest, Decoding, Size, Sizes
from gpt2.report.samples import sample_facts
from gpt2.report.sources import RunFacts, same_tokenizer
from gpt2.report.text import duration, in_words, mapped, percent

Facts = dict[str, Any]
_SPLITS = {"train": "training", "valid": "validation", "test": "test"}
_EXAMPLES = ("human", "greedy", "top-k", "top-p")  # rows of a comparison whose texts are shown
_SHOWN = 2  # cases of each benchmark
# Settings that do not affect training.
_INCIDENTAL = {
    "out", "resume", "cache_dir", "eval_every", "eval_tokens", "log_every", "checkpoint_every",
    "log_attention", "keep", "track", "sample_every", "sample_tokens", "max_skipped", "preset",
}  # fmt: skip


def gather(
    runs: Sequence[RunFacts],
    decoding: Decoding | None = None,
    sizes: Sizes | None = None,
    bench: Bench | None = None,
    *,
    title: str | None = None,
    author: str | None = None,
) -> Facts:
    """Collect what a report says of the first run, of the others beside it, and of other results.

    Without a comparison of decoding strategies it shows the run's own samples. A title that is None
    is made of the run's size and data.
    """
    run = runs[0]
    shown, max_tokens = (run.prompt, run.samples), run.train.sample_tokens
    if decoding is not None:
        shown, max_tokens = (decoding.prompt, _examples(decoding)), decoding.max_tokens
    title = title or f"GPT-2 on {run.data_name}: {in_words(run.parameters)} parameters"
    facts = {
        "title": " ".join(title.split()),
        "author": " ".join(author.split()) if author else None,
        "date": f"{run.finished.day} {run.finished:%B %Y}",
        "finished": run.finished.isoformat(),
        "run": _run(run),
        "model": _model(run),
        "train": _train(run),
        "data": _data(run),
        "test": dataclasses.asdict(run.test) | _losses(run),
        "samples": _samples(*shown) | {"max_tokens": max_tokens},
        "decoding": None if decoding is None else _decoding(decoding),
        "runs": _runs(runs) if len(runs) > 1 else None,
        "sizes": None if sizes is None else _sizes(sizes),
        "bench": None if bench is None else _bench(bench),
        "findings": [f._asdict() for f in discuss(run, decoding, sizes, bench)],
    }
    return mapped(facts, _formatted)


def _formatted(value: Any) -> Any:
    """A number as a string, a whole one with thousands separators; any other value as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _losses(run: RunFacts) -> Facts:
    test = run.test
    return {
        "loss": f"{test.loss:.4f}",
        "perplexity": f"{test.perplexity:,.2f}",
        "bits_per_byte": f"{test.bits_per_byte:.4f}",
    }


def _run(run: RunFacts) -> Facts:
    machine = run.machine
    return {
        "parameters": run.parameters,
        "tokens": run.tokens,
        "tokens_in_words": in_words(run.tokens),
        "tokens_per_step": run.tokens_per_step,
        "tokens_per_s": f"{run.tokens_per_s:,.0f}",
        "epochs": f"{run.tokens / run.data.splits['train'].tokens:.2f}" if run.data else None,
        "time": duration(run.seconds),
        "flops": f"{run.flops:.1e}",
        "steps": run.steps,
        "schedule": run.steps - run.train.extended_at,
        "step": run.step,
        "train_loss": f"{train_loss(run):.4f}",
        "train_perplexity": f"{math.exp(train_loss(run)):,.2f}",
        "val_loss": f"{run.val_loss:.4f}",
        "val_perplexity": f"{math.exp(run.val_loss):,.2f}",
        "device": str(machine.get("device", "not recorded")),
        "dtype": str(machine.get("dtype", "not recorded")),
        "torch": str(machine["torch"]) if "torch" in machine else None,
        "compile": bool(machine["compile"]) if "compile" in machine else None,
    }


def _model(run: RunFacts) -> Facts:
    norm = QuickNorm if run.model.norm == "quicknorm" else LayerNorm
    return dataclasses.asdict(run.model) | {
        "head_dim": run.model.head_dim,
        "mlp_width": run.model.mlp_width,
        "embedding_share": percent(embedding_share(run)),
        "norm_eps": f"{_default(norm, 'eps'):.1e}",
    }


def _train(run: RunFacts) -> Facts:
    config = run.train
    return dataclasses.asdict(config) | {
        "clip": config.clip or None,
        "seed": str(config.seed),
        "tokenizer": Path(config.tokenizer).name if config.tokenizer else None,
        "init_from": None if config.init_from is None else _without_folders(config.init_from),
        "muon_momentum": _default(torch.optim.Muon, "momentum"),
        "muon_steps": _default(torch.optim.Muon, "ns_steps"),
    }


def _without_folders(checkpoint: str) -> str:
    """The name of a folder; owner/name as it is."""
    return checkpoint if checkpoint.count("/") == 1 else Path(checkpoint).name


def _default(function: Any, argument: str) -> Any:
    return inspect.signature(function).parameters[argument].default


def _data(run: RunFacts) -> Facts:
    data = run.data
    if data is None:
        return {"name": run.data_name, "splits": None, "validated": None}
    taken, _, how = data.held_out.partition(": ")
    splits = [
        {
            "name": _SPLITS[name],
            **dataclasses.asdict(split),
            "bytes_per_token": f"{split.bytes / split.tokens:.2f}",
        }
        for name, split in data.splits.items()
    ]
    return {
        "name": data.name,
        "own": [_SPLITS[name] for name in ("valid", "test") if name not in taken],
        "held_out": [_SPLITS[name] for name in ("valid", "test") if name in taken],
        "how": how,
        "splits": splits,
        "validated": min(run.train.eval_tokens, data.splits["valid"].tokens),
    }


def _samples(prompt: str, texts: Mapping[str, str]) -> Facts:
    """Continuations of a prompt, each with its name and the counts in it."""
    items = [{"name": n, "text": text} | sample_facts(prompt, text) for n, text in texts.items()]
    return {"prompt": prompt, "items": items}


def _examples(decoding: Decoding) -> dict[str, str]:
    """The texts of those strategies that are shown."""
    found = [next((n for n in decoding.texts if n.startswith(s)), None) for s in _EXAMPLES]
    return {name: decoding.texts[name] for name in found if name is not None}


def _decoding(decoding: Decoding) -> Facts:
    rows = {"human": decoding.human, **decoding.strategies}
    return {
        "data": decoding.data,
        "split": decoding.split,
        "prompts": decoding.prompts,
        "min_p": decoding.min_p,
        "penalty": decoding.penalty,
        "findings": decoding.findings,
        "rows": [[name, *cells(measures, missing="\u2013")] for name, measures in rows.items()],
    }


def _runs(runs: Sequence[RunFacts]) -> Facts:
    """Several runs side by side: their settings, costs and scores."""
    first = runs[0]
    rows = [
        {
            "run": run.name,
            "parameters": run.parameters,
            "tokens": in_words(run.tokens),
            "time": duration(run.seconds),
            "tokens_per_s": f"{run.tokens_per_s:,.0f}",
            "flops": f"{run.flops:.1e}",
            **_losses(run),
        }
        for run in runs
    ]
    gains = [first.test.bits_per_byte - run.test.bits_per_byte for run in runs[1:]]
    others = [
        {
            "name": run.name,
            "parameters": f"{run.parameters / first.parameters:.2f}",
            "time": f"{run.seconds / first.seconds:.2f}",
            "gain": f"{abs(gain):.4f}",
            "better": gain > 0,
            "settings": _differences(first, run),
        }
        for run, gain in zip(runs[1:], gains, strict=True)
    ]
    return {
        "rows": rows,
        "others": others,
        "same_text": all(run.test.bytes == first.test.bytes for run in runs),
        "same_tokenizer": same_tokenizer(runs),
    }


def _differences(first: RunFacts, run: RunFacts) -> str:
    """The differences between the settings of two runs that affect training."""
    before = dataclasses.asdict(first.train) | dataclasses.asdict(first.model)
    after = dataclasses.asdict(run.train) | dataclasses.asdict(run.model)
    changed = [
        f"{name} {after[name]} instead of {value}"
        for name, value in before.items()
        if after[name] != value and name not in _INCIDENTAL
    ]
    return ", ".join(changed) or "none"


def _sizes(sizes: Sizes) -> Facts:
    """Model sizes trained on the same tokens: cost, loss, and their texts after one prompt."""
    rows = [
        {
            "size": size.name,
            "parameters": size.parameters,
            "time": duration(size.seconds),
            "tokens_per_s": f"{size.tokens_per_s:,.0f}",
            "memory": human_bytes(size.peak_memory_bytes) if size.peak_memory_bytes else "\u2013",
            "flops": f"{size.flops:.1e}",
            "loss": f"{size.test_loss:.4f}",
            "perplexity": f"{size.test_perplexity:,.2f}",
            "bits_per_byte": f"{size.test_bits_per_byte:.4f}",
        }
        for size in sizes.rows
    ]
    prompt = next(iter(sizes.rows[0].samples))
    return {
        "data": sizes.data,
        "tokens": in_words(sizes.tokens),
        "device": sizes.device,
        "memory": sizes.memory,
        "test": sizes.test,
        "sampling": sizes.sampling,
        "rows": rows,
        "steps": [_step(*two) for two in itertools.pairwise(sizes.rows)],
        "equal_cost": _equal_cost(sizes.rows),
        "samples": _samples(prompt, {size.name: size.samples[prompt] for size in sizes.rows}),
    }


def _step(small: Size, large: Size) -> Facts:
    change = large.test_loss - small.test_loss
    return {
        "small": small.name,
        "large": large.name,
        "parameters": f"{large.parameters / small.parameters:.1f}",
        "time": f"{large.seconds / small.seconds:.1f}",
        "lower": change < 0,
        "change": f"{abs(change):.4f}",
        "before": f"{small.test_perplexity:,.1f}",
        "after": f"{large.test_perplexity:,.1f}",
    }


def _equal_cost(rows: Sequence[Size]) -> Facts:
    """The validation losses after the operations that the cheapest size took in all."""
    budget = min(size.flops for size in rows)
    losses = {}
    for size in rows:
        tokens, values = zip(*size.val_curve, strict=True)
        flops = np.multiply(tokens, size.flops / size.tokens)
        if budget >= flops[0]:  # else the size had not been evaluated yet
            losses[size.name] = float(np.interp(budget, flops, values))
    return {
        "flops": f"{budget:.1e}",
        "best": min(losses, key=losses.__getitem__),
        "losses": ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items()),
    }


def _bench(bench: Bench) -> Facts:
    """Our code beside the fastest other code, on one device."""
    ordered = sorted(bench.contests, key=lambda c: (c.ours.bench, -c.ours.median))
    groups = itertools.groupby(ordered, key=lambda c: c.ours.bench)
    longest = [c for _, contests in groups for c in itertools.islice(contests, _SHOWN)]
    speedups = sorted(contest.speedup for contest in bench.contests)
    return {
        "device": bench.device,
        "date": bench.date,
        "commit": bench.commit,
        "tflops": f"{bench.limits.matmul_tflops:,.4g}",
        "dtype": bench.limits.matmul_dtype,
        "gbps": f"{bench.limits.copy_gbps:,.4g}",
        "wins": sum(s > 1 for s in speedups),
        "cases": len(speedups),
        "median": f"{statistics.median(speedups):.2f}",
        "lowest": f"{speedups[0]:.2f}",
        "highest": f"{speedups[-1]:.2f}",
        "failed": sum(row.status == "failed" for row in bench.rows),
        "rows": len(bench.rows),
        "shown": _SHOWN,
        "contests": [_contest(contest) for contest in longest],
    }


def _contest(contest: Contest) -> Facts:
    ours, other = contest.ours, contest.other
    return {
        "bench": ours.bench,
        "case": _case(ours.case),
        "ours": ours.variant,
        "our_ms": f"{ours.median * 1e3:.3g}",
        "other": other.variant,
        "other_ms": f"{other.median * 1e3:.3g}",
        "speedup": f"{contest.speedup:.2f}",
    }


def _case(case: Mapping[str, Any]) -> str:
    """{"T": 1024, "pass": "forward", "packed": true} as "T 1024, forward, packed"."""
    words = []
    for name, value in case.items():
        if isinstance(value, str):
            words.append(value)
        elif value is True:
            words.append(name)
        elif value is not None and value is not False:
            words.append(f"{name} {_formatted(value)}")
    return ", ".join(words)
