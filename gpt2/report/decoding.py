"""The blocks on samples: by strategy, and how strategies change fluency and diversity."""

from gpt2.report.blocks import Block, bullets, figure, formula, paragraph, samples, table
from gpt2.report.formulas import sampling_formula
from gpt2.report.result_files import Decoding
from gpt2.report.samples import SampleFacts, sample_facts
from gpt2.report.sources import RunFacts
from gpt2.report.text import Spans, number, rich, share

_MIN_P = (
    " Min-p draws from the tokens of at least that share of the largest probability (Nguyen et al. "
    "2024)."
)
_PENALTY = " A penalty lowers the logits of tokens that occurred before (Keskar et al. 2019)."
_EXAMPLES = ("human", "greedy", "top-k", "top-p")  # rows whose texts are shown
_QUOTED = 10  # words of a repeated phrase


def decoding_blocks(run: RunFacts, decoding: Decoding | None) -> list[Block]:
    """Samples by strategy; their analysis over many prompts, or over these samples alone."""
    if decoding is None:
        prompt, texts, tokens = run.prompt, run.samples, run.train.sample_tokens
        which = "The prompt is the beginning of the first test document"
    else:
        prompt, tokens = decoding.prompt, decoding.max_tokens
        shown = [next((n for n in decoding.texts if n.startswith(s)), None) for s in _EXAMPLES]
        texts = {name: decoding.texts[name] for name in shown if name is not None}
        which = f"The prompt is the middle one of a list of {decoding.prompts}, chosen by its place"
    intro = rich(
        "{which}; it is in italics, and continued by at most {tokens} tokens.",
        which=which,
        tokens=tokens,
    )
    facts = {name: sample_facts(prompt, text) for name, text in texts.items()}
    return [
        formula(sampling_formula()),
        paragraph(intro),
        samples(prompt, texts),
        bullets("Reading the samples", [_reading(name, f) for name, f in facts.items()]),
        *([_counts(facts)] if decoding is None else _measures(decoding)),
    ]


def _counts(facts: dict[str, SampleFacts]) -> Block:
    return table(
        rich(
            "Counts over one sample of each strategy. Diversity: distinct pairs of words "
            "(distinct-2, Li et al. 2016). Coherence: runs of 4 words that stood earlier in it "
            "(Welleck et al. 2020). Relevance: words of the prompt, function words left out, that "
            "come back."
        ),
        ["strategy", "words", "distinct-2", "repeated", "prompt words kept"],
        [
            [
                name,
                f"{f.words}",
                share(f.distinct_2),
                share(f.repeated),
                f"{len(f.kept)} of {len(f.topic)}",
            ]
            for name, f in facts.items()
        ],
    )


def _measures(decoding: Decoding) -> list[Block]:
    caption = rich(
        "{prompts} prompts from the {split} split of {data}, each continued by at most {tokens} "
        "tokens, beside what their authors wrote. PPL: the model's own perplexity of the text. "
        "Distinct-1 to -3: different runs of 1 to 3 words, of as many in each row (Li et al. "
        "2016). Repeated: runs of 4 words that stood earlier in the same text (Welleck et al. "
        "2020). Self-BLEU: likeness of a row's texts to each other (Zhu et al. 2018). Copied: runs "
        "of 8 words that stand in the training text.{min_p}{penalty}",
        prompts=decoding.prompts,
        split=decoding.split,
        data=decoding.data,
        tokens=decoding.max_tokens,
        min_p=_MIN_P if decoding.min_p else "",
        penalty=_PENALTY if decoding.penalty else "",
    )
    head = [
        "strategy", "PPL", "dist.-1", "dist.-2", "dist.-3", "repeated", "self-BLEU", "words",
        "ended", "copied",
    ]  # fmt: skip
    rows = [
        [
            name,
            number(m.perplexity, ",.1f"),
            number(m.distinct_1, ".3f"),
            number(m.distinct_2, ".3f"),
            number(m.distinct_3, ".3f"),
            number(m.repetition_4, ".1%"),
            number(m.self_bleu_4, ".3f"),
            number(m.mean_words, ".0f"),
            number(m.ended, ".0%"),
            number(m.copied_8, ".2%"),
        ]
        for name, m in {"human": decoding.human, **decoding.strategies}.items()
    ]
    plot = figure(
        "decoding.svg",
        rich(
            "Fluency against diversity. A strategy that writes as people do lies where the dashed "
            "lines cross: as surprising to the model as their text, and as varied."
        ),
        alt="Perplexity and distinct-2 of each decoding strategy and of the human text",
    )
    return [
        plot,
        bullets("Fluency and diversity", decoding.findings),
        table(caption, head, rows),
    ]


def _reading(name: str, facts: SampleFacts) -> Spans:
    words = facts.phrase.split()
    quoted = facts.phrase if len(words) <= _QUOTED else f"{' '.join(words[:_QUOTED])} ..."
    repeats = (
        "no phrase of three words occurs twice in its {words:,} words"
        if not words
        else "the longest phrase that it repeats has {length} words, \u201c{quoted}\u201d, and "
        "occurs {times} times in {words:,}"
    )
    return rich(
        f"{{name}}: {repeats}; of the prompt {{kept}} of {{topic}} topic words come back{{which}}.",
        name=name,
        words=facts.words,
        length=len(words),
        quoted=quoted,
        times=facts.times,
        kept=len(facts.kept),
        topic=len(facts.topic),
        which=f" ({', '.join(facts.kept)})" if facts.kept else "",
    )
