"""Strategies compared: prompts, continuations, measures and the findings stated from them."""

import json
import math
import random

import numpy as np
import pytest
import torch
from tqdm import tqdm

from gpt2.compare_decoding import __main__ as command
from gpt2.compare_decoding.__main__ import Arguments, Prompt, choose_prompts, main
from gpt2.compare_decoding.measures import HUMAN, Continuations, analyse, measure
from gpt2.compare_decoding.text_metrics import CopySearch
from gpt2.generate.sampling import Sampling
from gpt2.runs.run import load_run
from gpt2.tokenizer import Tokenizer
from tests.gpt2.data.streams import document_stream
from tests.gpt2.stand_ins import write_run

SENTENCE = "the cat saw a red bird and it ran home with her old friend by the sea"


def _story(seed: int, sentences: int = 8) -> str:
    rng = random.Random(seed)
    lines = [rng.choices(SENTENCE.split(), k=9) for _ in range(sentences)]
    return "\n".join(" ".join(line).capitalize() + "." for line in lines)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([_story(i) for i in range(30)], 300)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, tokenizer):
    """A folder with a text and a run, and that run's untrained model."""
    folder = tmp_path_factory.mktemp("work")
    data = folder / "stories.txt"
    data.write_text("<|endoftext|>\n".join(_story(i) for i in range(90)), encoding="utf-8")
    write_run(folder / "run", data, tokenizer, block_size=32)
    return folder, load_run(folder / "run", device="cpu")


def test_prompts_are_beginnings_of_documents_in_whole_words(tokenizer):
    documents = [_story(i) for i in range(20)]
    stream = document_stream(tokenizer, [*documents, "Too short."])
    prompts = choose_prompts(stream, tokenizer, count=10, prompt_tokens=12, max_tokens=9)
    assert len(prompts) == 10
    starts = set()
    for prompt in prompts:
        assert prompt.ids[0] == tokenizer.eot_id
        assert len(prompt.ids) <= 13
        text = tokenizer.decode(prompt.ids[1:])
        [source] = [d for d in documents if d.startswith(text)]
        starts.add(documents.index(source))
        assert source[len(text)].isspace()
        assert source[len(text) :].startswith(tokenizer.decode(prompt.human))
        assert len(prompt.human) == 9
    assert len(starts) == 10
    assert {min(starts), max(starts)} == {0, 19}  # spread over the split


def test_the_human_text_ends_where_its_document_does(tokenizer):
    document = _story(0, sentences=1)
    size = len(tokenizer.encode(document))
    stream = document_stream(tokenizer, [document, _story(1)])
    [prompt] = choose_prompts(stream, tokenizer, count=1, prompt_tokens=size - 8, max_tokens=100)
    assert prompt.human[-1] == tokenizer.eot_id
    assert tokenizer.decode([*prompt.ids[1:], *prompt.human[:-1]]) == document


def test_one_long_document_gives_beginnings_of_lines(tokenizer):
    book = _story(0, sentences=60)
    stream, size = document_stream(tokenizer, [book]), {"prompt_tokens": 10, "max_tokens": 5}
    prompts = choose_prompts(stream, tokenizer, count=12, **size)
    for prompt in prompts[1:]:
        assert f"\n{tokenizer.decode(prompt.ids)}" in book
        assert tokenizer.eot_id not in prompt.ids
    with pytest.raises(ValueError, match=r"room for \d+ prompts of 10 tokens, not for 900"):
        choose_prompts(stream, tokenizer, count=900, **size)


def _continue(run, prompts, **options):
    settings = {"sampling": Sampling(top_k=50), "max_tokens": 20, "batch_size": 100, "seed": 1}
    return command.continue_prompts(run, prompts, **settings | options, bar=tqdm(disable=True))


def test_a_continuation_does_not_depend_on_the_batch(workplace, tokenizer):
    _, run = workplace
    prompts = [Prompt(tokenizer.encode(_story(i))[: 4 + i], []) for i in range(7)]
    together = _continue(run, prompts)
    assert together == _continue(run, prompts, batch_size=3)
    assert together != _continue(run, prompts, batch_size=3, seed=2)
    for ids in together:
        assert len(ids) == 20 or ids.index(tokenizer.eot_id) == len(ids) - 1


def test_a_text_that_ended_says_so(workplace, tokenizer, monkeypatch):
    eot = tokenizer.eot_id
    made = [[5], [], [6, 7]]
    monkeypatch.setattr("gpt2.compare_decoding.__main__.continuations", lambda *a, **k: made)
    made = _continue(workplace[1], [Prompt([1], [])] * 3, max_tokens=2)
    assert made == [[5, eot], [eot], [6, 7]]


def _row(texts, nll, ids) -> Continuations:
    n = len(texts)
    return Continuations([ids] * n, texts, [text.split() for text in texts], np.array([nll] * n))


def test_measures_of_a_row():
    human = _row(["a b c d", "e f g h"], 3.0, [1, 2, 0])
    loop = _row(["x y x y x y"] * 2, 1.0, [1] * 4)
    human.ids[0] = [1, 2, 3]
    rows = {HUMAN: human, "loop": loop}
    copies = CopySearch([*human.words, *loop.words], 2)
    copies.found = {("a", "b"), ("x", "y")}
    measures = measure(rows, eot_id=0, copies=copies)
    human, loop = measures[HUMAN], measures["loop"]
    assert (human.perplexity, loop.perplexity) == pytest.approx((math.exp(1), math.exp(0.25)))
    assert (human.distinct_1, human.distinct_2, human.distinct_3) == (1, 1, 1)
    # Of the first 8 words, 6 pairs and 4 runs of 3: as many as the human row has.
    assert (loop.distinct_1, loop.distinct_2, loop.distinct_3) == (2 / 8, 2 / 6, 2 / 4)
    assert (loop.repetition_4, loop.self_bleu_4) == pytest.approx((1 / 3, 1))
    assert (human.mean_words, loop.mean_words) == (4, 6)
    assert (human.ended, loop.ended) == (0.5, 0)
    assert (human.copied_8, loop.copied_8) == (1 / 6, 6 / 10)
    assert math.isnan(measure(rows, eot_id=0, copies=None)[HUMAN].copied_8)


def test_findings_name_the_rows_that_the_figures_name():
    varied = [" ".join(f"w{i}{j}" for j in range(10)) for i in range(6)]
    some = [" ".join(f"w{j // 2}" for j in range(10)) for _ in range(6)]
    rows = {
        HUMAN: _row(varied, 30.0, [1] * 10),
        "dull": _row(["a a a a a a a a a a"] * 6, 5.0, [1] * 10),
        "close": _row(varied, 28.0, [1] * 10),
        "between": _row(some, 15.0, [1] * 10),
    }
    findings = analyse(rows, measure(rows, eot_id=0, copies=None))
    fluency, diversity, repetition, trade_off = findings
    assert "human continuations have perplexity 20.1" in fluency
    assert "close comes nearest (16.4; so in 100 of 100 random halves" in fluency
    assert "dull has the lowest (1.6), close the highest (16.4)" in fluency
    assert "close comes nearest (100.0%" in diversity
    assert "dull has the fewest" in diversity
    assert "85.7% (dull) of the strategies'" in repetition
    assert "+1.00; close is nearest to the human text in both" in trade_off


def test_a_question_whose_measure_is_nan_is_left_out():
    rows = {HUMAN: _row(["a b c d e"], 3.0, [1, 1]), "mute": _row([""], 1.0, [1, 1])}
    findings = analyse(rows, measure(rows, eot_id=0, copies=None))
    assert [finding.partition(":")[0] for finding in findings] == ["Fluency"]


def test_perplexity_is_that_of_the_continuation_given_its_prompt(workplace, tokenizer):
    _, run = workplace
    ids = tokenizer.encode(_story(3))[:20]
    row = command.assess(run, [Prompt(ids[:12], [])], [ids[12:]], batch_size=4)
    log_p = run.model(torch.tensor([ids[:-1]]))[0][0].log_softmax(dim=1)
    expected = -sum(log_p[i - 1, ids[i]].item() for i in range(12, 20))
    assert row.perplexity([0]) == pytest.approx(math.exp(expected / 8), rel=1e-4)
    assert row.texts == [tokenizer.decode(ids[12:])]


def test_the_command_writes_table_figures_texts_and_plot(workplace, capsys, tmp_path):
    folder, _ = workplace
    settings = {"prompts": 4, "prompt_tokens": 10, "max_tokens": 12, "device": "cpu"}
    paths = {"out": str(tmp_path / "out"), "cache_dir": str(folder / "data")}
    arguments = Arguments(str(folder / "run"), **settings, **paths)
    main(arguments)
    first = (tmp_path / "out/decoding.json").read_bytes()
    output = capsys.readouterr().out
    for name in (HUMAN, *command.STRATEGIES, "self-BLEU", "Trade-off:"):
        assert name in output
    result = json.loads(first)
    assert [row["name"] for row in result["rows"]] == [HUMAN, *command.STRATEGIES]
    assert set(result["definitions"]) == set(result["rows"][0]) - {"name", "sampling"}
    assert len(result["texts"]) == 4
    assert result["training_tokens_searched"] > 0
    markdown = (tmp_path / "out/decoding.md").read_text(encoding="utf-8")
    assert all(finding in markdown for finding in result["findings"])
    assert (tmp_path / "out/decoding.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "out/decoding.svg").read_bytes()
    main(arguments)
    assert (tmp_path / "out/decoding.json").read_bytes() == first


def test_text_of_a_model_is_no_markup():
    from gpt2.compare_decoding.report import _escape

    assert _escape("\n# a|b <b>*c*</b> [x](y) \\ _z_\n\nd ") == (
        r"\# a\|b &lt;b&gt;\*c\*&lt;/b&gt; \[x\](y) \\ \_z\_<br><br>d"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 30}, "--prompt-tokens 10 and --max-tokens 30 must fit the context of 32"),
        ({"prompt_tokens": 32}, "must fit the context"),
        ({"split": "dev"}, "has no split 'dev'"),
        ({"prompts": 5000}, r"the split has room for \d+ prompts"),
    ],
)
def test_settings_that_cannot_be_are_refused(workplace, options, message):
    folder, _ = workplace
    settings = {"prompt_tokens": 10, "cache_dir": str(folder / "data"), "device": "cpu"} | options
    with pytest.raises(ValueError, match=message):
        main(Arguments(str(folder / "run"), **settings))
