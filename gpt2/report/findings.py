"""Strengths, weaknesses and possible improvements of a run, each stated from its numbers.

A check looks at one thing and yields what it found; the number alone decides what kind that is.
"""

import itertools
import math
import statistics
from collections.abc import Iterator
from typing import NamedTuple

from gpt2.compare_decoding.text_metrics import in_a_row, repetition, words
from gpt2.report.result_files import Bench, Decoding, Sizes
from gpt2.report.sources import RunFacts
from gpt2.report.text import duration, in_words

STRENGTH, WEAKNESS, IMPROVEMENT = "Strengths", "Weaknesses", "Possible improvements"

_TOKENS_PER_PARAMETER = 20  # compute-optimal, about (Hoffmann et al. 2022)
_EPOCHS = 4  # repeated text is about as good as new up to here (Muennighoff et al. 2023)
_SMALL_GAP, _LARGE_GAP = 0.05, 0.1  # nats per token between two splits
_NOTABLE = 0.02  # nats per token by which a curve rises or falls
_LOOPING, _FLUENT = 0.2, 0.05  # share of phrases of 4 words that have occurred before
_STUCK = 4  # times that a phrase stands in a row
_CLOSE = 0.05  # difference of two shares of distinct pairs of words
_COPIED = 0.01  # share of runs of 8 words
_ENOUGH_WORDS = 20  # in a sample, for its shares to mean something
_HALF = 4.0  # bits per byte of a text brought to half of its size
_LEARNED = 10  # a fall over the run counts as learning from so many times `_NOTABLE` on
_HEAVY = 0.5  # share of the parameters


class Finding(NamedTuple):
    """A sentence of the discussion, of a kind, with the key in references.bib of its source."""

    kind: str
    text: str
    source: str | None = None


Findings = Iterator[Finding]


def discuss(
    run: RunFacts,
    decoding: Decoding | None = None,
    sizes: Sizes | None = None,
    bench: Bench | None = None,
) -> list[Finding]:
    """State from its numbers what speaks for a run, what against it, and what to try next."""
    checks = (_compression, _fit, _waste, _convergence, _balance, _text, _shift, _stability)
    found = [check(run) for check in (*checks, _reach, _embedding)]
    found.append(_repetition(run) if decoding is None else _strategies(decoding))
    if sizes is not None:
        found.append(_scaling(sizes))
    if bench is not None:
        found.append(_speed(bench))
    return list(itertools.chain(*found))


def train_loss(run: RunFacts, end: int | None = None) -> float:
    """Mean training loss of a tenth of the steps, up to `end` or else to the scored weights."""
    end = run.step if end is None else end
    last = [loss for step, loss in run.train_curve if end - run.steps / 10 < step <= end]
    return sum(last) / len(last) if last else run.train_curve[-1][1]


def embedding_share(run: RunFacts) -> float:
    """Share of the parameters in the token embedding, and in the head where it has its own."""
    matrices = 1 if run.model.tie else 2
    return matrices * run.model.vocab_size * run.model.n_embd / run.parameters


def _compression(run: RunFacts) -> Findings:
    test, vocab = run.test, run.model.vocab_size
    yield Finding(
        STRENGTH if test.bits_per_byte < _HALF else WEAKNESS,
        f"On unseen text the model is as uncertain as among {test.perplexity:.1f} equally likely "
        f"tokens, out of {vocab:,}; as a compressor it would bring that text to "
        f"{test.bits_per_byte / 8:.0%} of its size ({test.bits_per_byte:.3f} of 8 bits per byte).",
    )


def _fit(run: RunFacts) -> Findings:
    train = train_loss(run)
    gap = run.val_loss - train
    if gap <= _SMALL_GAP and _rise(run) <= _NOTABLE:
        yield Finding(
            STRENGTH,
            f"No sign of overfitting: the validation loss, {run.val_loss:.3f}, is {abs(gap):.3f} "
            f"nats {'above' if gap > 0 else 'below'} the training loss of the steps before it, "
            f"{train:.3f}.",
        )
    elif gap >= _LARGE_GAP:
        yield Finding(
            WEAKNESS,
            f"The validation loss, {run.val_loss:.3f}, is {gap:.3f} nats above the training loss "
            f"of the steps before it, {train:.3f}: the model fits its training text better than "
            "others.",
        )
        yield Finding(
            IMPROVEMENT,
            f"Against the gap of {gap:.3f} nats to the training loss: more varied text, or "
            f"dropout, which was {run.model.dropout:g}.",
        )


def _rise(run: RunFacts) -> float:
    """How far the validation loss of the last weights lies above the lowest."""
    return run.val_curve[-1][1] - run.val_loss


def _diverged(run: RunFacts) -> bool:
    """Whether the validation loss rose because training itself went wrong."""
    return _rise(run) > _NOTABLE and train_loss(run, run.steps) > train_loss(run) + _NOTABLE


def _waste(run: RunFacts) -> Findings:
    rise = _rise(run)
    if rise <= _NOTABLE:
        return
    risen = (
        f"the validation loss was lowest at step {run.step:,} and rose by {rise:.3f} nats until "
        f"step {run.val_curve[-1][0]:,}, the training loss went from {train_loss(run):.3f} to "
        f"{train_loss(run, run.steps):.3f}"
    )
    if not _diverged(run):
        yield Finding(
            WEAKNESS,
            f"Overfitting: {risen}, and {1 - run.step / run.steps:.0%} of the steps were wasted.",
        )
        return
    yield Finding(WEAKNESS, f"Training went wrong: {risen}.")
    yield Finding(
        IMPROVEMENT,
        f"For stability: a peak learning rate below {run.train.lr:g}, or a warm-up longer than "
        f"{run.train.warmup_steps:,} steps.",
    )


def _convergence(run: RunFacts) -> Findings:
    early = [point for point in run.val_curve if 0.5 * run.steps <= point[0] <= 0.8 * run.steps]
    if not early or _rise(run) > _NOTABLE:
        return
    step, loss = early[-1]
    change = loss - run.val_curve[-1][1]
    if change > _NOTABLE:
        yield Finding(
            WEAKNESS,
            f"The run ended before it converged: from step {step:,} to {run.val_curve[-1][0]:,} "
            f"the validation loss still fell by {change:.3f} nats, in part with the learning rate.",
        )
    elif run.train_curve[0][1] - run.val_loss > _LEARNED * _NOTABLE:
        yield Finding(
            STRENGTH,
            "The run has converged under its schedule: the validation loss changed by "
            f"{abs(change):.3f} nats from step {step:,} to {run.val_curve[-1][0]:,}.",
        )


def _balance(run: RunFacts) -> Findings:
    if run.train.init_from is not None:  # what its weights had seen before is not recorded
        return
    ratio = run.tokens / run.parameters
    if ratio >= _TOKENS_PER_PARAMETER:
        yield Finding(
            STRENGTH,
            f"The model has seen {ratio:.1f} tokens per parameter, not fewer than the "
            f"{_TOKENS_PER_PARAMETER} or so that are compute-optimal",
            "hoffmann2022",
        )
        return
    yield Finding(
        WEAKNESS,
        f"The model has seen {ratio:.2f} tokens per parameter and is undertrained for its size: "
        f"about {_TOKENS_PER_PARAMETER} are compute-optimal",
        "hoffmann2022",
    )
    if _rise(run) > _NOTABLE:  # more steps of the same kind made it worse
        return
    missing = _TOKENS_PER_PARAMETER * run.parameters - run.tokens
    yield Finding(
        IMPROVEMENT,
        f"Train longer: {in_words(missing)} more tokens "
        f"({math.ceil(missing / run.tokens_per_step):,} steps, "
        f"{duration(missing / run.tokens_per_s)} at the speed measured) make "
        f"{_TOKENS_PER_PARAMETER} per parameter.",
    )


def _text(run: RunFacts) -> Findings:
    if run.data is None:
        return
    tokens = run.data.splits["train"].tokens
    epochs = run.tokens / tokens
    text, seen = in_words(tokens), in_words(run.tokens)
    if epochs < 1 and run.train.init_from is None:
        yield Finding(
            WEAKNESS, f"Only {epochs:.0%} of the training text was read: {seen} of {text} tokens."
        )
    elif epochs > _EPOCHS:
        yield Finding(
            WEAKNESS,
            f"Each training token was read {epochs:.1f} times; beyond about {_EPOCHS} times "
            "little is gained",
            source="muennighoff2023",
        )
        yield Finding(IMPROVEMENT, f"More text: {text} tokens are few for a run of {seen}.")


def _shift(run: RunFacts) -> Findings:
    difference = run.test.loss - run.val_loss
    if abs(difference) > _LARGE_GAP:
        yield Finding(
            WEAKNESS,
            f"The held-out splits differ: the test loss is {abs(difference):.3f} nats "
            f"{'above' if difference > 0 else 'below'} the validation loss, so that one figure "
            "says little about text of another kind.",
        )


def _stability(run: RunFacts) -> Findings:
    clip = run.train.clip
    if run.skipped:
        yield Finding(
            WEAKNESS,
            f"{run.skipped:,} of {run.steps:,} steps were skipped, as their loss or gradient was "
            "not finite.",
        )
    elif clip and run.grad_norms and not _diverged(run):
        clipped = sum(norm > clip for norm in run.grad_norms)
        yield Finding(
            STRENGTH,
            f"Training was stable: none of {run.steps:,} steps was skipped, and {clipped:,} of "
            f"{len(run.grad_norms):,} logged gradients were longer than {clip:g} and clipped to "
            "it.",
        )


def _reach(run: RunFacts) -> Findings:
    test = run.test
    yield Finding(
        WEAKNESS,
        f"The model was trained and scored on windows of {test.context:,} tokens, about "
        f"{test.context * test.bytes / test.tokens:,.0f} bytes of this text: it has learned "
        "nothing about what connects longer stretches.",
    )


def _embedding(run: RunFacts) -> Findings:
    share, vocab = embedding_share(run), run.model.vocab_size
    if share > _HEAVY:
        yield Finding(
            WEAKNESS,
            f"{share:.0%} of the parameters are the embedding and the head of {vocab:,} tokens; "
            f"only {in_words(run.parameters * (1 - share))} are in the layers.",
        )
        yield Finding(
            IMPROVEMENT,
            f"A smaller vocabulary than {vocab:,}, or more layers, to lower the share of "
            f"{share:.0%} that the embedding has.",
        )


def _repetition(run: RunFacts) -> Findings:
    calm = {}
    for name, text in run.samples.items():
        found = words(text)
        share = repetition([found]) if len(found) >= _ENOUGH_WORDS else math.nan
        phrase, times = in_a_row(text)
        title = name[:1].upper() + name[1:]
        if times >= _STUCK:
            yield Finding(
                WEAKNESS,
                f"{title} decoding loops: \u201c{phrase}\u201d stands {times} times in a row.",
            )
        elif share > _LOOPING:
            yield Finding(WEAKNESS, f"{title} decoding loops: {_repeated(share, found)}")
        elif share < _FLUENT:
            calm[title] = (share, found)
    if calm:
        title = min(calm, key=lambda name: calm[name][0])
        yield Finding(STRENGTH, f"{title} decoding does not loop: {_repeated(*calm[title])}")


def _repeated(share: float, found: list[str]) -> str:
    return (
        f"{share:.0%} of the phrases of 4 words in its sample of {len(found)} words have occurred "
        "before in it."
    )


def _strategies(decoding: Decoding) -> Findings:
    rows, human = decoding.strategies, decoding.human
    worst = max(rows, key=lambda name: rows[name].repetition_4)
    if rows[worst].repetition_4 - human.repetition_4 > _FLUENT:
        yield Finding(
            WEAKNESS,
            f"Looping, worst in {worst}: {rows[worst].repetition_4:.1%} of its runs of 4 words "
            f"stood earlier in the same text, in the human continuations {human.repetition_4:.1%} "
            f"({decoding.prompts} prompts).",
        )
    nearest = min(rows, key=lambda name: abs(rows[name].distinct_2 - human.distinct_2))
    difference = abs(rows[nearest].distinct_2 - human.distinct_2)
    if not math.isnan(difference):
        yield Finding(
            STRENGTH if difference < _CLOSE else WEAKNESS,
            f"The strategy nearest to human diversity is {nearest}: "
            f"{rows[nearest].distinct_2:.1%} of its pairs of words are different, of the authors' "
            f"{human.distinct_2:.1%}.",
        )
    most = max(rows, key=lambda name: rows[name].copied_8)
    if rows[most].copied_8 == 0:
        yield Finding(
            STRENGTH,
            "None of the runs of 8 words in its texts is copied from the training text; of the "
            f"authors' own {human.copied_8:.2%} stand there.",
        )
    elif not math.isnan(rows[most].copied_8):
        yield Finding(
            STRENGTH if rows[most].copied_8 <= max(_COPIED, human.copied_8) else WEAKNESS,
            f"At most {rows[most].copied_8:.2%} of the runs of 8 words in its texts ({most}) are "
            f"copied from the training text; of the authors' own {human.copied_8:.2%} stand there.",
        )


def _scaling(sizes: Sizes) -> Findings:
    best = min(sizes.rows, key=lambda size: size.test_loss)
    largest = max(sizes.rows, key=lambda size: size.parameters)
    count, parameters = len(sizes.rows), in_words(best.parameters)
    if best is largest:
        advice = (
            f"A larger model: of the {count} sizes compared the largest, {best.name} with "
            f"{parameters} parameters, has the lowest test loss, {best.test_loss:.3f}."
        )
    else:
        advice = (
            f"For {in_words(sizes.tokens)} tokens a model of the size {best.name}, {parameters} "
            f"parameters: of the {count} sizes compared it has the lowest test loss, "
            f"{best.test_loss:.3f}."
        )
    yield Finding(IMPROVEMENT, advice)


def _speed(bench: Bench) -> Findings:
    speedups = [contest.speedup for contest in bench.contests]
    median = statistics.median(speedups)
    yield Finding(
        STRENGTH if median > 1 else WEAKNESS,
        f"On {bench.device} our kernels take {1 / median:.2f} times the time of the fastest other "
        f"(median of {len(speedups)} cases; they are faster in "
        f"{sum(speedup > 1 for speedup in speedups)}).",
    )
