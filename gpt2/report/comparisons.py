"""The blocks that set runs, model sizes and benchmarked variants side by side."""

import dataclasses
import itertools
import statistics
from collections.abc import Sequence

import numpy as np

from gpt2.common.devices import human_bytes
from gpt2.report.blocks import Block, Text, bullets, figure, paragraph, samples, table
from gpt2.report.result_files import Bench, Size, Sizes
from gpt2.report.samples import SampleFacts, sample_facts
from gpt2.report.sources import RunFacts, same_tokenizer
from gpt2.report.text import Spans, duration, in_words, milliseconds, rich, scientific, share

_SHOWN = 2  # cases of each benchmark
# Settings that do not change what is trained.
_INCIDENTAL = {
    "out", "resume", "cache_dir", "eval_every", "eval_tokens", "log_every", "checkpoint_every",
    "keep", "tensorboard", "sample_tokens", "max_skipped", "preset",
}  # fmt: skip


def runs_blocks(runs: Sequence[RunFacts]) -> list[Block]:
    """Several runs side by side: what differs in their settings, what they cost and reached."""
    first = runs[0]
    rows: list[list[Text]] = [
        [
            run.name,
            f"{run.parameters:,}",
            in_words(run.tokens),
            duration(run.seconds),
            f"{run.tokens_per_s:,.0f}",
            [scientific(run.flops)],
            f"{run.test.loss:.4f}",
            f"{run.test.perplexity:,.2f}",
            f"{run.test.bits_per_byte:.4f}",
        ]
        for run in runs
    ]
    costs = table(
        rich("Runs compared: cost of training, and the test split. {note}", note=_comparable(runs)),
        ["run", "parameters", "tokens", "time", "tokens/s", "FLOPs", "loss", "PPL", "BPB"],
        rows,
    )
    curves = figure(
        "runs.svg",
        rich(
            "Validation loss of the runs, over the tokens seen (left) and over the floating point "
            "operations spent (right)."
        ),
        alt="Validation loss of each run over tokens and over floating point operations",
    )
    return [
        costs,
        *([curves] if same_tokenizer(runs) else []),
        bullets(f"Compared with {first.name}", [_verdict(first, run) for run in runs[1:]]),
    ]


def _comparable(runs: Sequence[RunFacts]) -> str:
    first = runs[0]
    if any(run.test.bytes != first.test.bytes for run in runs):
        return "The test splits are not the same text: the last three columns cannot be compared."
    if not same_tokenizer(runs):
        return "The tokenizers differ: only bits per byte can be compared."
    return "Same tokenizer, same test split."


def _differences(first: RunFacts, run: RunFacts) -> str:
    """The settings in which two runs differ, of those that change what is trained."""
    before = dataclasses.asdict(first.train) | dataclasses.asdict(first.model)
    after = dataclasses.asdict(run.train) | dataclasses.asdict(run.model)
    changed = [
        f"{name} {after[name]} instead of {value}"
        for name, value in before.items()
        if after[name] != value and name not in _INCIDENTAL
    ]
    return ", ".join(changed) or "none"


def _verdict(first: RunFacts, run: RunFacts) -> Spans:
    gain = first.test.bits_per_byte - run.test.bits_per_byte
    return rich(
        "{name} has {parameters:.2f} times the parameters, took {time:.2f} times the training time "
        "and reaches {gain:.4f} bits per byte {side}. Settings unlike: {settings}.",
        name=run.name,
        parameters=run.parameters / first.parameters,
        time=run.seconds / first.seconds,
        gain=abs(gain),
        side="fewer" if gain > 0 else "more",
        settings=_differences(first, run),
    )


def sizes_blocks(sizes: Sizes) -> list[Block]:
    """Model sizes trained on the same tokens: cost, loss, and how each goes on with one prompt."""
    rows: list[list[Text]] = [
        [
            size.name,
            f"{size.parameters:,}",
            duration(size.seconds),
            f"{size.tokens_per_s:,.0f}",
            "\u2013" if size.peak_memory_bytes is None else human_bytes(size.peak_memory_bytes),
            [scientific(size.flops)],
            f"{size.test_loss:.4f}",
            f"{size.test_perplexity:,.2f}",
            f"{size.test_bits_per_byte:.4f}",
        ]
        for size in sizes.rows
    ]
    costs = table(
        rich(
            "Sizes trained on the same {tokens} tokens of {data}, on {device}. Time is that of "
            "training steps; memory at its peak ({memory}). Test split: {test}.",
            tokens=in_words(sizes.tokens),
            data=sizes.data,
            device=sizes.device,
            memory=sizes.memory,
            test=sizes.test,
        ),
        ["size", "parameters", "time", "tokens/s", "memory", "FLOPs", "loss", "PPL", "BPB"],
        rows,
    )
    curves = figure(
        "sizes.svg",
        rich(
            "Validation loss of the sizes, over the tokens seen (left) and over the floating point "
            "operations spent (right)."
        ),
        alt="Validation loss of each size over tokens and over floating point operations",
    )
    prompt = next(iter(sizes.rows[0].samples))
    texts = {size.name: size.samples[prompt] for size in sizes.rows}
    quality = [_quality(name, sample_facts(prompt, text)) for name, text in texts.items()]
    steps = [_step(*two) for two in itertools.pairwise(sizes.rows)]
    return [
        costs,
        bullets("Efficiency", [*steps, _at_equal_cost(sizes)]),
        curves,
        paragraph(rich("The same prompt by every size: {how}.", how=sizes.sampling)),
        samples(prompt, texts),
        bullets("Text quality", quality),
    ]


def _step(small: Size, large: Size) -> Spans:
    change = large.test_loss - small.test_loss
    return rich(
        "From {small} to {large}: {parameters:.1f} times the parameters and {time:.1f} times the "
        "time {verb} the test loss by {change:.4f} nats, perplexity from {before:,.1f} to "
        "{after:,.1f}.",
        small=small.name,
        large=large.name,
        parameters=large.parameters / small.parameters,
        time=large.seconds / small.seconds,
        verb="lower" if change < 0 else "raise",
        change=abs(change),
        before=small.test_perplexity,
        after=large.test_perplexity,
    )


def _at_equal_cost(sizes: Sizes) -> Spans:
    """Which size is best for the operations that all of them have spent."""
    budget = min(size.flops for size in sizes.rows)
    losses = {size.name: _loss_at(size, budget) for size in sizes.rows}
    known = {name: loss for name, loss in losses.items() if loss is not None}
    best = min(known, key=lambda name: known[name])
    listed = ", ".join(f"{name} {loss:.3f}" for name, loss in known.items())
    return rich(
        "After {flops} floating point operations, which the cheapest run took, {best} has the "
        "lowest validation loss of the sizes evaluated by then (between evaluations on a straight "
        "line: {listed}).",
        flops=scientific(budget),
        best=best,
        listed=listed,
    )


def _loss_at(size: Size, flops: float) -> float | None:
    """Validation loss after so many operations; None before the first evaluation."""
    per_token = size.flops / size.tokens
    spent = [tokens * per_token for tokens, _ in size.val_curve]
    if flops < spent[0]:
        return None
    return float(np.interp(flops, spent, [loss for _, loss in size.val_curve]))


def _quality(name: str, facts: SampleFacts) -> Spans:
    return rich(
        "{name}: {repeated} of the runs of 4 words in its {words} words stood earlier in it, and "
        "{kept} of {topic} topic words of the prompt come back.",
        name=name,
        repeated=share(facts.repeated),
        words=facts.words,
        kept=len(facts.kept),
        topic=len(facts.topic),
    )


def bench_blocks(bench: Bench) -> list[Block]:
    """Our code against the fastest other, on one device."""
    contests = sorted(bench.contests, key=lambda c: (c.bench, -c.our_seconds))
    shown = [
        contest
        for name in dict.fromkeys(c.bench for c in contests)
        for contest in [c for c in contests if c.bench == name][:_SHOWN]
    ]
    rows = [
        [
            f"{c.bench}: {c.case}",
            f"{c.ours}, {milliseconds(c.our_seconds)}",
            f"{c.other}, {milliseconds(c.other_seconds)}",
            f"{c.speedup:.2f}",
        ]
        for c in shown
    ]
    times = table(
        rich(
            "Time of one call in milliseconds, median: ours, the fastest other, and the other's "
            "time over ours. The {shown} longest cases of each benchmark.",
            shown=_SHOWN,
        ),
        ["case", "ours", "fastest other", "ratio"],
        rows,
        wide=True,
    )
    speedups = sorted(c.speedup for c in contests)
    text = rich(
        "On {device} ({date}, commit {commit}; matrix products reach {tflops:,.4g} TFLOP/s in "
        "{dtype}, copies {gbps:,.4g} GB/s). In {wins} of {cases} cases ours is the fastest; the "
        "other's time over ours has the median {median:.2f} and lies between {low:.2f} and "
        "{high:.2f}. {failed} of {rows} rows failed their comparison with the reference and were "
        "not timed.",
        device=bench.device,
        date=bench.date,
        commit=bench.commit,
        tflops=bench.limits.matmul_tflops,
        dtype=bench.limits.matmul_dtype,
        gbps=bench.limits.copy_gbps,
        wins=sum(s > 1 for s in speedups),
        cases=len(speedups),
        median=statistics.median(speedups),
        low=speedups[0],
        high=speedups[-1],
        failed=bench.failed,
        rows=bench.rows,
    )
    return [paragraph(text), times]
