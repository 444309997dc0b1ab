"""Counts in a sample: its variety, its repetitions, and the words of the prompt that come back."""

from bisect import bisect_left
from typing import Any

from gpt2.compare_decoding.text_metrics import distinct, ngrams, repetition, words
from gpt2.report.text import percent

_QUOTED = 10  # words of a repeated phrase

# Words that do not say what a text is about.
_FUNCTION_WORDS = frozenset(
    words(
        """
        a about after all also an and are as at be been but by can did do for from had has have he
        her his i if in into is it its me my no not of on once one or our she so some than that the
        their them then there they this time to up upon was we were what when which who will with
        would you your
        """
    )
)


def sample_facts(prompt: str, text: str) -> dict[str, Any]:
    """Count over the words of a continuation, case ignored.

    Returns:
        words: number of words.
        distinct_2: different pairs of neighbouring words, as a share of all pairs.
        repeated: share of its runs of 4 words that stood earlier in it.
        repeat: the longest phrase of at least 3 words that occurs more than once, or None.
        topic: number of words of the prompt other than function words.
        kept: those of them that come back.
    """
    found = words(text)
    topic = dict.fromkeys(w for w in words(prompt) if w not in _FUNCTION_WORDS)
    return {
        "words": len(found),
        "distinct_2": percent(distinct([found], 2)),
        "repeated": percent(repetition([found], 4)),
        "repeat": _longest_repeat(found),
        "topic": len(topic),
        "kept": [w for w in topic if w in set(found)],
    }


def _longest_repeat(text: list[str]) -> dict[str, Any] | None:
    """The longest phrase of at least 3 words that occurs again after its end, and its count."""
    sizes = range(3, len(text) // 2 + 1)
    # Where n words repeat, their first n - 1 do.
    repeating = bisect_left(sizes, True, key=lambda n: _most_frequent(text, n)[1] == 1)
    if not repeating:
        return None
    phrase, times = _most_frequent(text, sizes[repeating - 1])
    quoted = " ".join(phrase[:_QUOTED]) + (" ..." if len(phrase) > _QUOTED else "")
    return {"words": len(phrase), "phrase": quoted, "times": times}


def _most_frequent(text: list[str], n: int) -> tuple[tuple[str, ...], int]:
    """The phrase of n words that occurs most often without overlap, and its count."""
    free: dict[tuple[str, ...], int] = {}
    times: dict[tuple[str, ...], int] = {}
    for place, phrase in enumerate(ngrams(text, n)):
        if place >= free.get(phrase, 0):
            free[phrase] = place + n
            times[phrase] = times.get(phrase, 0) + 1
    return max(times.items(), key=lambda item: item[1])
