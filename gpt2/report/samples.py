"""Counts in a sample: its variety, its repetitions, and the words of the prompt that come back."""

from dataclasses import dataclass

from gpt2.compare_decoding.text_metrics import distinct, ngrams, repetition, words

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


@dataclass(frozen=True)
class SampleFacts:
    """Counts over the words of one sample, case ignored.

    Attributes:
        words: number of words.
        distinct_2: distinct pairs of neighbouring words, as a share of all pairs; nan without any.
        repeated: share of its runs of 4 words that stood earlier in it; nan without any.
        phrase: the longest phrase that occurs more than once; "" when none of 3 words does.
        times: how often it occurs.
        topic: words of the prompt other than function words.
        kept: those of them that come back in the sample.
    """

    words: int
    distinct_2: float
    repeated: float
    phrase: str
    times: int
    topic: tuple[str, ...]
    kept: tuple[str, ...]


def sample_facts(prompt: str, text: str) -> SampleFacts:
    found = words(text)
    phrase, times = _longest_repeat(found)
    topic = tuple(dict.fromkeys(w for w in words(prompt) if w not in _FUNCTION_WORDS))
    return SampleFacts(
        words=len(found),
        distinct_2=distinct([found], 2),
        repeated=repetition([found], 4),
        phrase=phrase,
        times=times,
        topic=topic,
        kept=tuple(w for w in topic if w in set(found)),
    )


def _longest_repeat(text: list[str]) -> tuple[str, int]:
    """The longest phrase of at least 3 words that occurs again after its end, and its count."""
    best, times = "", 0
    low, high = 3, len(text) // 2
    while low <= high:  # where n words repeat, their first n - 1 do
        n = (low + high) // 2
        phrase, found = _most_frequent(text, n)
        if found > 1:
            best, times = " ".join(phrase), found
            low = n + 1
        else:
            high = n - 1
    return best, times


def _most_frequent(text: list[str], n: int) -> tuple[tuple[str, ...], int]:
    """The phrase of n words that occurs most often without overlap, and its count."""
    free: dict[tuple[str, ...], int] = {}
    times: dict[tuple[str, ...], int] = {}
    for place, phrase in enumerate(ngrams(text, n)):
        if place >= free.get(phrase, 0):
            free[phrase] = place + n
            times[phrase] = times.get(phrase, 0) + 1
    return max(times.items(), key=lambda item: item[1])
