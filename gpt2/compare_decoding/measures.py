"""The measures of decoding strategies, and findings stated from them."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt2.compare_decoding.text_metrics import CopySearch, Words, distinct, repetition, self_bleu

HUMAN = "human"
_HALVES = 100


@dataclass(frozen=True)
class Continuations:
    """One continuation of each prompt, in the order of the prompts.

    Attributes:
        ids: token ids; <|endoftext|> is the last where the text ended.
        texts: the decoded ids without <|endoftext|>.
        words: the words of each text.
        nll: -log p of each text's ids under the model, in nats.
    """

    ids: list[list[int]]
    texts: list[str]
    words: list[list[str]]
    nll: NDArray[np.float64]

    def perplexity(self, chosen: Iterable[int]) -> float:
        """Perplexity of all tokens of the continuations of the chosen prompts."""
        chosen = list(chosen)
        mean = float(self.nll[chosen].sum() / sum(len(self.ids[i]) for i in chosen))
        return math.exp(mean) if mean < 700 else math.inf


@dataclass(frozen=True)
class Measures:
    """One row of the comparison; shares are in [0, 1], nan where nothing could be measured."""

    perplexity: float
    distinct_1: float
    distinct_2: float
    distinct_3: float
    repetition_4: float
    self_bleu_4: float
    mean_words: float
    ended: float
    copied_8: float


def measure(
    rows: Mapping[str, Continuations], *, eot_id: int, copies: CopySearch | None
) -> dict[str, Measures]:
    """Measure every row, distinct-n over as many n-grams as the shortest row has."""
    texts = [row.words for row in rows.values()]
    budgets = {n: ngram_budget(texts, n) for n in (1, 2, 3)}
    return {
        name: Measures(
            perplexity=row.perplexity(range(len(row.ids))),
            distinct_1=distinct(row.words, 1, budget=budgets[1]),
            distinct_2=distinct(row.words, 2, budget=budgets[2]),
            distinct_3=distinct(row.words, 3, budget=budgets[3]),
            repetition_4=repetition(row.words, 4),
            self_bleu_4=self_bleu(row.words, 4),
            mean_words=float(np.mean([len(text) for text in row.words])),
            ended=float(np.mean([ids[-1] == eot_id for ids in row.ids])),
            copied_8=math.nan if copies is None else copies.share(row.words),
        )
        for name, row in rows.items()
    }


def ngram_budget(rows: Iterable[Sequence[Words]], n: int) -> int:
    """The number of n-grams in the row that has the fewest."""
    return min(sum(max(len(text) - n + 1, 0) for text in row) for row in rows)


def analyse(rows: Mapping[str, Continuations], measures: Mapping[str, Measures]) -> list[str]:
    """State what the figures say, a sentence or two for each question.

    "Nearest" is by ratio for perplexities and by difference for shares, and is decided anew in
    random halves of the prompts. Questions whose measure is nan in the human text, or in all
    strategies, are left out.
    """
    human = measures[HUMAN]
    others = {name: m for name, m in measures.items() if name != HUMAN}
    fluent, fluency = _nearest(rows, others, "perplexity", ".1f", _log_perplexities)
    findings = [
        f"Fluency: the human continuations have perplexity {human.perplexity:.1f} under the model. "
        + fluency.format(least="the lowest", most="the highest")
    ]
    diverse = None
    if not math.isnan(human.distinct_2):
        diverse, diversity = _nearest(rows, others, "distinct_2", ".1%", _distinct_2)
        findings.append(
            f"Diversity: {human.distinct_2:.1%} of the pairs of words in the human continuations "
            "are different. " + diversity.format(least="the fewest", most="the most")
        )
    if not math.isnan(human.repetition_4) and (span := _span(others, "repetition_4")):
        findings.append(
            f"Repetition: {human.repetition_4:.1%} of the human runs of 4 words stood earlier in "
            f"the same text, and {span} of the strategies'."
        )
    if not math.isnan(human.copied_8) and (span := _span(others, "copied_8")):
        findings.append(
            f"Copying: {human.copied_8:.1%} of the human runs of 8 words stand in the training "
            f"text, and {span} of the strategies'."
        )
    if diverse is not None:
        correlation = _rank_correlation(
            [m.perplexity for m in others.values()], [m.distinct_2 for m in others.values()]
        )
        both = f"{fluent} is" if fluent == diverse else "no strategy is"
        findings.append(
            f"Trade-off: over the {len(others)} strategies the rank correlation of perplexity and "
            f"distinct-2 is {correlation:+.2f}; {both} nearest to the human text in both."
        )
    return findings


def _log_perplexities(rows: Mapping[str, Continuations], chosen: Sequence[int]) -> dict[str, float]:
    return {name: math.log(row.perplexity(chosen)) for name, row in rows.items()}


def _distinct_2(rows: Mapping[str, Continuations], chosen: Sequence[int]) -> dict[str, float]:
    """Distinct-2 of each row over the chosen prompts, of equally many pairs of words."""
    part = {name: [row.words[i] for i in chosen] for name, row in rows.items()}
    budget = ngram_budget(part.values(), 2)
    return {name: distinct(texts, 2, budget=budget) for name, texts in part.items()}


def _nearest(
    rows: Mapping[str, Continuations],
    others: Mapping[str, Measures],
    field: str,
    form: str,
    measured: Callable[[Mapping[str, Continuations], Sequence[int]], dict[str, float]],
) -> tuple[str, str]:
    """The strategy nearest to the human text in a measure, and a sentence with {least}, {most}."""

    def decide(chosen: Sequence[int]) -> str:
        values = measured(rows, chosen)
        return min(others, key=lambda name: abs(values[name] - values[HUMAN]))

    n = len(rows[HUMAN].texts)
    halves = [np.random.default_rng(i).permutation(n)[: max(n // 2, 1)] for i in range(_HALVES)]
    best = decide(range(n))
    votes = sum(decide(half.tolist()) == best for half in halves)
    shown = {name: f"({getattr(m, field):{form}})" for name, m in others.items()}
    order = sorted(others, key=lambda name: getattr(others[name], field))
    return best, (
        f"{best} comes nearest ({getattr(others[best], field):{form}}; so in {votes} of {_HALVES} "
        f"random halves of the prompts); {order[0]} has {{least}} {shown[order[0]]}, {order[-1]} "
        f"{{most}} {shown[order[-1]]}."
    )


def _span(measures: Mapping[str, Measures], field: str) -> str:
    """The range of a share, with the row that has the largest; empty where all are nan."""
    values = {name: getattr(m, field) for name, m in measures.items()}
    order = sorted((n for n in values if not math.isnan(values[n])), key=lambda n: values[n])
    if not order:
        return ""
    low, high = f"{values[order[0]]:.1%}", f"{values[order[-1]]:.1%}"
    return low if low == high else f"{low} to {high} ({order[-1]})"


def _rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's correlation; equal values are ranked in their order."""
    ranks = [np.argsort(np.argsort(values)) for values in (x, y)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
