"""The figures of the comparison of decoding strategies, and what they say."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt2.compare_decoding.text_metrics import CopySearch, distinct, ngrams, repetition, self_bleu

HUMAN = "human"
_HALVES = 100


@dataclass(frozen=True)
class Continuations:
    """One continuation of each prompt, in the order of the prompts.

    Attributes:
        ids: token ids, <|endoftext|> being the last where the text ended.
        texts: the same as text, without <|endoftext|>.
        words: its words.
        nll: -log p of the ids under the model, in nats.
        tokens: number of ids.
    """

    ids: list[list[int]]
    texts: list[str]
    words: list[list[str]]
    nll: NDArray[np.float64]
    tokens: NDArray[np.int64]

    def perplexity(self, chosen: Sequence[int] | None = None) -> float:
        """Of all continuations, or of those of the chosen prompts, taken together."""
        rows = slice(None) if chosen is None else list(chosen)
        mean = float(self.nll[rows].sum() / self.tokens[rows].sum())
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
    """All measures of every row, distinct-n for the number of n-grams that the shortest row has."""
    budgets = {n: ngram_budget(rows.values(), n) for n in (1, 2, 3)}
    return {
        name: Measures(
            perplexity=row.perplexity(),
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


def ngram_budget(rows: Collection[Continuations], n: int) -> int:
    """The number of n-grams in the row that has the fewest."""
    return min(sum(len(ngrams(text, n)) for text in row.words) for row in rows)


def analyse(rows: Mapping[str, Continuations], measures: Mapping[str, Measures]) -> list[str]:
    """What the figures say, a sentence or two for each question, in no words but theirs.

    "Nearest" is by ratio for perplexities and by difference for shares. How sure that is can be
    seen from random halves of the prompts, in each of which it is decided anew.
    """
    human = measures[HUMAN]
    others = {name: m for name, m in measures.items() if name != HUMAN}
    n = len(rows[HUMAN].texts)
    halves = [np.random.default_rng(i).permutation(n)[: max(n // 2, 1)] for i in range(_HALVES)]

    def perplexity(chosen: Sequence[int]) -> dict[str, float]:
        return {name: math.log(row.perplexity(chosen)) for name, row in rows.items()}

    def distinct_2(chosen: Sequence[int]) -> dict[str, float]:
        part = {name: [row.words[i] for i in chosen] for name, row in rows.items()}
        budget = min(sum(max(len(text) - 1, 0) for text in texts) for texts in part.values())
        return {name: distinct(texts, 2, budget=budget) for name, texts in part.items()}

    def nearest(measured: Callable[[Sequence[int]], dict[str, float]]) -> tuple[str, int]:
        best = _nearest(measured(range(n)))
        return best, sum(_nearest(measured(half.tolist())) == best for half in halves)

    def extremes(field: str) -> tuple[str, str]:
        by_value = sorted(others, key=lambda name: getattr(others[name], field))
        return by_value[0], by_value[-1]

    fluent, fluent_votes = nearest(perplexity)
    diverse, diverse_votes = nearest(distinct_2)
    findings = []
    low, high = extremes("perplexity")
    findings.append(
        f"Fluency: the human continuations have perplexity {human.perplexity:.1f} under the model. "
        f"{fluent} comes nearest ({others[fluent].perplexity:.1f}; {_votes(fluent_votes)}); {low} "
        f"has the lowest ({others[low].perplexity:.1f}), {high} the highest "
        f"({others[high].perplexity:.1f})."
    )
    low, high = extremes("distinct_2")
    findings.append(
        f"Diversity: {human.distinct_2:.1%} of the pairs of words in the human continuations are "
        f"different. {diverse} comes nearest ({others[diverse].distinct_2:.1%}; "
        f"{_votes(diverse_votes)}); {low} has the fewest ({others[low].distinct_2:.1%}), {high} "
        f"the most ({others[high].distinct_2:.1%})."
    )
    findings.append(
        f"Repetition: {human.repetition_4:.1%} of the human runs of 4 words stood earlier in the "
        f"same text, and {_span(others, 'repetition_4')} of the strategies'."
    )
    if not math.isnan(human.copied_8):
        findings.append(
            f"Copying: {human.copied_8:.1%} of the human runs of 8 words stand in the training "
            f"text, and {_span(others, 'copied_8')} of the strategies'."
        )
    correlation = _rank_correlation(
        [m.perplexity for m in others.values()], [m.distinct_2 for m in others.values()]
    )
    both = (
        f"{fluent} is nearest to the human text in both"
        if fluent == diverse
        else ("no strategy is nearest to the human text in both")
    )
    findings.append(
        f"Trade-off: over the {len(others)} strategies the rank correlation of perplexity and "
        f"distinct-2 is {correlation:+.2f}; {both}."
    )
    return findings


def _nearest(values: Mapping[str, float]) -> str:
    """The row whose value differs least from the human one."""
    others = [name for name in values if name != HUMAN]
    return min(others, key=lambda name: abs(values[name] - values[HUMAN]))


def _span(measures: Mapping[str, Measures], field: str) -> str:
    """From the smallest to the largest of a share, with the row that has the latter."""
    values = {name: f"{getattr(m, field):.1%}" for name, m in measures.items()}
    order = sorted(measures, key=lambda name: getattr(measures[name], field))
    low, high = values[order[0]], values[order[-1]]
    return low if low == high else f"{low} to {high} ({order[-1]})"


def _votes(votes: int) -> str:
    return f"so in {votes} of {_HALVES} random halves of the prompts"


def _rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's; values that are equal have ranks in their order."""
    ranks = [np.argsort(np.argsort(values)) for values in (x, y)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
