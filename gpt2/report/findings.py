"""Strengths, weaknesses and possible improvements of a run, each stated from its numbers.

A check looks at one thing and yields what it found; in which list depends on the number alone.
"""

import itertools
import math
import statistics
from collections.abc import Iterator

from gpt2.report.result_files import Bench, Decoding, Sizes
from gpt2.report.samples import sample_facts
from gpt2.report.sources import RunFacts
from gpt2.report.text import Spans, duration, in_words, rich

STRENGTH, WEAKNESS, IMPROVEMENT = "Strengths", "Weaknesses", "Possible improvements"
Findings = Iterator[tuple[str, Spans]]

_TOKENS_PER_PARAMETER = 20  # compute-optimal, about (Hoffmann et al. 2022)
_EPOCHS = 4  # repeated text is about as good as new up to here (Muennighoff et al. 2023)
_SMALL_GAP, _LARGE_GAP = 0.05, 0.1  # nats per token between two splits
_NOTABLE = 0.02  # nats per token by which a curve rises or falls
_LOOPING, _FLUENT = 0.2, 0.05  # share of phrases of 4 words that have occurred before
_CLOSE = 0.05  # difference of two shares of distinct pairs of words
_COPIED = 0.01  # share of runs of 8 words
_ENOUGH_WORDS = 20  # in a sample, for its shares to mean something
_HEAVY = 0.5  # share of the parameters


def discuss(
    run: RunFacts,
    decoding: Decoding | None = None,
    sizes: Sizes | None = None,
    bench: Bench | None = None,
) -> dict[str, list[Spans]]:
    """What the numbers of a run say for it, against it, and about what to try next."""
    found: dict[str, list[Spans]] = {STRENGTH: [], WEAKNESS: [], IMPROVEMENT: []}
    checks = (_compression, _fit, _waste, _convergence, _balance, _text, _shift, _stability)
    findings = [check(run) for check in (*checks, _reach, _embedding)]
    findings.append(_repetition(run) if decoding is None else _strategies(decoding))
    if sizes is not None:
        findings.append(_scaling(sizes))
    if bench is not None:
        findings.append(_speed(bench))
    for kind, sentence in itertools.chain(*findings):
        found[kind].append(sentence)
    return found


def train_loss(run: RunFacts) -> float:
    """Mean training loss of the last tenth of the steps up to the scored weights."""
    start = run.step - run.steps / 10
    last = [loss for step, loss in run.train_curve if start < step <= run.step]
    return sum(last) / len(last) if last else run.train_curve[-1][1]


def _compression(run: RunFacts) -> Findings:
    test, vocab = run.test, run.model.vocab_size
    yield (
        STRENGTH if test.loss < math.log(vocab) else WEAKNESS,
        rich(
            "On unseen text the model is as uncertain as among {ppl:.1f} equally likely tokens, "
            "out of {vocab:,}; as a compressor it would bring that text to {share:.0%} of its size "
            "({bits:.3f} of 8 bits per byte).",
            ppl=test.perplexity,
            vocab=vocab,
            share=test.bits_per_byte / 8,
            bits=test.bits_per_byte,
        ),
    )


def _fit(run: RunFacts) -> Findings:
    train = train_loss(run)
    gap = run.val_loss - train
    numbers = {"gap": abs(gap), "val": run.val_loss, "train": train}
    if gap <= _SMALL_GAP:
        yield (
            STRENGTH,
            rich(
                "No sign of overfitting: the validation loss, {val:.3f}, is {gap:.3f} nats {side} "
                "the training loss of the last steps, {train:.3f}.",
                side="above" if gap > 0 else "below",
                **numbers,
            ),
        )
    elif gap >= _LARGE_GAP:
        yield (
            WEAKNESS,
            rich(
                "The validation loss, {val:.3f}, is {gap:.3f} nats above the training loss of the "
                "last steps, {train:.3f}: the model fits its training text better than others.",
                **numbers,
            ),
        )
        yield (
            IMPROVEMENT,
            rich(
                "Against the gap of {gap:.3f} nats to the training loss: more varied text, or "
                "dropout, which was {dropout:g}.",
                gap=gap,
                dropout=run.model.dropout,
            ),
        )


def _waste(run: RunFacts) -> Findings:
    rise = run.val_curve[-1][1] - run.val_loss
    if rise > _NOTABLE:
        yield (
            WEAKNESS,
            rich(
                "Overfitting: the validation loss was lowest at step {step:,} and rose by "
                "{rise:.3f} nats until step {steps:,}, so {wasted:.0%} of the steps were wasted.",
                step=run.step,
                rise=rise,
                steps=run.steps,
                wasted=1 - run.step / run.steps,
            ),
        )


def _convergence(run: RunFacts) -> Findings:
    early = [loss for step, loss in run.val_curve if step <= 0.8 * run.steps]
    if not early:
        return
    fall = early[-1] - run.val_curve[-1][1]
    numbers = {"steps": run.steps, "fall": abs(fall)}
    if fall > _NOTABLE:
        yield (
            WEAKNESS,
            rich(
                "The run ended before it converged: over the last fifth of its {steps:,} steps the "
                "validation loss still fell by {fall:.3f} nats, in part with the learning rate.",
                **numbers,
            ),
        )
    elif fall >= -_NOTABLE:
        yield (
            STRENGTH,
            rich(
                "The run has converged under its schedule: the validation loss changed by "
                "{fall:.3f} nats over the last fifth of its {steps:,} steps.",
                **numbers,
            ),
        )


def _balance(run: RunFacts) -> Findings:
    rule, ratio = _TOKENS_PER_PARAMETER, run.tokens / run.parameters
    if ratio >= rule:
        yield (
            STRENGTH,
            rich(
                "The model has seen {ratio:.1f} tokens per parameter, not fewer than the {rule} or "
                "so that are compute-optimal (Hoffmann et al. 2022).",
                ratio=ratio,
                rule=rule,
            ),
        )
        return
    missing = rule * run.parameters - run.tokens
    yield (
        WEAKNESS,
        rich(
            "The model has seen {ratio:.2f} tokens per parameter and is undertrained for its size: "
            "about {rule} are compute-optimal (Hoffmann et al. 2022).",
            ratio=ratio,
            rule=rule,
        ),
    )
    yield (
        IMPROVEMENT,
        rich(
            "Train longer: {missing} more tokens ({steps:,} steps, {time} at the speed measured) "
            "make {rule} per parameter.",
            missing=in_words(missing),
            steps=math.ceil(missing / run.tokens_per_step),
            time=duration(missing / run.tokens_per_s),
            rule=rule,
        ),
    )


def _text(run: RunFacts) -> Findings:
    if run.data is None:
        return
    text = run.data.splits["train"].tokens
    epochs = run.tokens / text
    numbers = {"text": in_words(text), "seen": in_words(run.tokens)}
    if epochs < 1:
        yield (
            WEAKNESS,
            rich(
                "Only {share:.0%} of the training text was read: {seen} of {text} tokens.",
                share=epochs,
                **numbers,
            ),
        )
    elif epochs > _EPOCHS:
        yield (
            WEAKNESS,
            rich(
                "Each training token was read {epochs:.1f} times; beyond about {limit} times "
                "little is gained (Muennighoff et al. 2023).",
                epochs=epochs,
                limit=_EPOCHS,
            ),
        )
        yield (
            IMPROVEMENT,
            rich("More text: {text} tokens are few for a run of {seen}.", **numbers),
        )


def _shift(run: RunFacts) -> Findings:
    difference = run.test.loss - run.val_loss
    if abs(difference) > _LARGE_GAP:
        yield (
            WEAKNESS,
            rich(
                "The held-out splits differ: the test loss is {difference:.3f} nats {side} the "
                "validation loss, so that one figure says little about text of another kind.",
                difference=abs(difference),
                side="above" if difference > 0 else "below",
            ),
        )


def _stability(run: RunFacts) -> Findings:
    if run.skipped:
        yield (
            WEAKNESS,
            rich(
                "{skipped:,} of {steps:,} steps were skipped, as their loss or gradient was not "
                "finite.",
                skipped=run.skipped,
                steps=run.steps,
            ),
        )
    elif run.train.clip and run.grad_norms:
        yield (
            STRENGTH,
            rich(
                "Training was stable: none of {steps:,} steps was skipped, and {clipped:,} of "
                "{logged:,} logged gradients were longer than {clip:g} and clipped to it.",
                steps=run.steps,
                clipped=sum(norm > run.train.clip for norm in run.grad_norms),
                logged=len(run.grad_norms),
                clip=run.train.clip,
            ),
        )


def _repetition(run: RunFacts) -> Findings:
    samples = {name: sample_facts(run.prompt, text) for name, text in run.samples.items()}
    samples = {name: facts for name, facts in samples.items() if facts.words >= _ENOUGH_WORDS}
    if not samples:
        return
    worst = max(samples, key=lambda name: samples[name].repeated)
    best = min(samples, key=lambda name: samples[name].repeated)
    sentence = (
        "{name} decoding {verb}: {repeated:.0%} of the phrases of 4 words in its sample of {words} "
        "words have occurred before in it."
    )
    for name, kind, verb, holds in (
        (worst, WEAKNESS, "loops", samples[worst].repeated > _LOOPING),
        (best, STRENGTH, "does not loop", samples[best].repeated < _FLUENT),
    ):
        if holds:
            facts = samples[name]
            yield (
                kind,
                rich(
                    sentence,
                    name=name[:1].upper() + name[1:],
                    verb=verb,
                    repeated=facts.repeated,
                    words=facts.words,
                ),
            )


def _strategies(decoding: Decoding) -> Findings:
    rows, human = decoding.strategies, decoding.human
    worst = max(rows, key=lambda name: rows[name].repetition_4)
    if rows[worst].repetition_4 - human.repetition_4 > _FLUENT:
        yield (
            WEAKNESS,
            rich(
                "Looping, worst in {name}: {own:.1%} of its runs of 4 words stood earlier in the "
                "same text, in the human continuations {human:.1%} ({prompts} prompts).",
                name=worst,
                own=rows[worst].repetition_4,
                human=human.repetition_4,
                prompts=decoding.prompts,
            ),
        )
    nearest = min(rows, key=lambda name: abs(rows[name].distinct_2 - human.distinct_2))
    yield (
        STRENGTH if abs(rows[nearest].distinct_2 - human.distinct_2) < _CLOSE else WEAKNESS,
        rich(
            "The strategy nearest to human diversity is {name}: {own:.1%} of its pairs of words "
            "are different, of the authors' {human:.1%}.",
            name=nearest,
            own=rows[nearest].distinct_2,
            human=human.distinct_2,
        ),
    )
    most = max(rows, key=lambda name: rows[name].copied_8)
    if not math.isnan(rows[most].copied_8):
        yield (
            STRENGTH if rows[most].copied_8 <= max(_COPIED, human.copied_8) else WEAKNESS,
            rich(
                "At most {own:.2%} of the runs of 8 words in its texts ({name}) are copied from "
                "the training text; of the authors' own {human:.2%} stand there.",
                own=rows[most].copied_8,
                name=most,
                human=human.copied_8,
            ),
        )


def _scaling(sizes: Sizes) -> Findings:
    best = min(sizes.rows, key=lambda size: size.test_loss)
    largest = max(sizes.rows, key=lambda size: size.parameters)
    if best is largest:
        yield (
            IMPROVEMENT,
            rich(
                "A larger model: of the {count} sizes compared the largest, {name} with "
                "{parameters} parameters, has the lowest test loss, {loss:.3f}.",
                count=len(sizes.rows),
                name=best.name,
                parameters=in_words(best.parameters),
                loss=best.test_loss,
            ),
        )
    else:
        yield (
            IMPROVEMENT,
            rich(
                "For {tokens} tokens a model of the size {name}, {parameters} parameters: of the "
                "{count} sizes compared it has the lowest test loss, {loss:.3f}.",
                tokens=in_words(sizes.tokens),
                name=best.name,
                parameters=in_words(best.parameters),
                count=len(sizes.rows),
                loss=best.test_loss,
            ),
        )


def _speed(bench: Bench) -> Findings:
    speedups = [contest.speedup for contest in bench.contests]
    median = statistics.median(speedups)
    yield (
        STRENGTH if median > 1 else WEAKNESS,
        rich(
            "On {device} our kernels take {time:.2f} times the time of the fastest other (median "
            "of {cases} cases; they are faster in {wins}).",
            device=bench.device,
            time=1 / median,
            cases=len(speedups),
            wins=sum(speedup > 1 for speedup in speedups),
        ),
    )


def _reach(run: RunFacts) -> Findings:
    test = run.test
    yield (
        WEAKNESS,
        rich(
            "The model was trained and scored on windows of {context:,} tokens, about {bytes:,.0f} "
            "bytes of this text: it has learned nothing about what connects longer stretches.",
            context=test.context,
            bytes=test.context * test.bytes / test.tokens,
        ),
    )


def _embedding(run: RunFacts) -> Findings:
    config = run.model
    tables = config.vocab_size * config.n_embd * (1 if config.tie else 2)
    share = tables / run.parameters
    if share > _HEAVY:
        yield (
            WEAKNESS,
            rich(
                "{share:.0%} of the parameters are the embedding and the head of {vocab:,} tokens; "
                "only {rest} are in the layers.",
                share=share,
                vocab=config.vocab_size,
                rest=in_words(run.parameters - tables),
            ),
        )
        yield (
            IMPROVEMENT,
            rich(
                "A smaller vocabulary than {vocab:,}, or more layers, to lower the share of "
                "{share:.0%} that the embedding has.",
                vocab=config.vocab_size,
                share=share,
            ),
        )
