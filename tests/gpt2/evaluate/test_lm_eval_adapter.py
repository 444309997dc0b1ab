"""A run as lm-eval's model: its methods called directly, and lm-eval's own tasks in a child."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gpt2.evaluate.tasks import hellaswag, lambada
from gpt2.generate.decoding import continuations
from gpt2.generate.sampling import Sampling
from gpt2.tokenizer import Tokenizer
from tests.gpt2.stand_ins import run_python, write_run

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

TEXT = "the cat sat on the mat and the dog ran home with a red bird by the sea. "


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT] * 3, 290)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("work")
    model = write_run(folder / "run", folder / "no.txt", tokenizer, block_size=16)
    return folder, model


@pytest.fixture(scope="module")
def adapter(workplace):
    from lm_eval.api.registry import get_model

    import gpt2.evaluate.lm_eval_adapter  # noqa: F401 (registers the name)

    return get_model("gpt2-run").create_from_arg_string(
        f"run={workplace[0] / 'run'}", {"batch_size": 3, "max_batch_size": None, "device": "cpu"}
    )


def _instances(kind, *arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, own, i) for i, own in enumerate(arguments)]


def _log_p(model, ids):
    """log p of each token but the first, with the 16 tokens before it in sight at most."""
    rows = [model(torch.tensor([ids[max(0, i - 16) : i]]))[0][0, -1] for i in range(1, len(ids))]
    return [
        (row.log_softmax(dim=0)[i].item(), bool(row.argmax() == i))
        for row, i in zip(rows, ids[1:], strict=True)
    ]


def test_loglikelihoods_are_those_of_the_continuation(workplace, tokenizer, adapter):
    _, model = workplace
    pairs = [("the cat sat", " on the mat"), ("", "the dog"), ("the sea ", "ran"), (" ", "a")]
    got = adapter.loglikelihood(_instances("loglikelihood", *pairs), disable_tqdm=True)
    for (context, text), (log_p, greedy) in zip(pairs, got, strict=True):
        before = tokenizer.encode(context.rstrip()) or [tokenizer.eot_id]
        own = tokenizer.encode(context[len(context.rstrip()) :] + text)
        expected = _log_p(model, before + own)[-len(own) :]
        assert log_p == pytest.approx(sum(p for p, _ in expected), abs=1e-3)
        assert greedy == all(g for _, g in expected)


def test_what_greedy_decoding_makes_counts_as_greedy(workplace, tokenizer, adapter):
    context = tokenizer.encode("the cat")
    [made] = continuations(workplace[1], [context], 5, sampling=Sampling(temperature=0))
    other = [*made[:-1], (made[-1] + 1) % tokenizer.vocab_size]
    scored = adapter._loglikelihood_tokens(
        [(("", ""), context, made), (("", ""), context, other)], disable_tqdm=True
    )
    assert [greedy for _, greedy in scored] == [True, False]


def test_rolling_loglikelihood_scores_every_token_once(workplace, tokenizer, adapter):
    _, model = workplace
    texts = ["the cat", TEXT * 2, ""]
    rolling = adapter.loglikelihood_rolling(
        _instances("loglikelihood_rolling", *((text,) for text in texts)), disable_tqdm=True
    )
    short = [tokenizer.eot_id, *tokenizer.encode(texts[0])]
    assert rolling[0] == pytest.approx(sum(p for p, _ in _log_p(model, short)), abs=1e-3)
    from lm_eval.utils import get_rolling_token_windows

    ids = tokenizer.encode(texts[1])
    expected = 0.0
    for context, targets in get_rolling_token_windows(ids, tokenizer.eot_id, 16, 1):
        log_p = model(torch.tensor([context]))[0][0].log_softmax(dim=1)[-len(targets) :]
        expected += log_p[range(len(targets)), targets].sum().item()
    assert rolling[1] == pytest.approx(expected, abs=1e-3)
    assert rolling[2] == 0


def _made(adapter, *prompts, **options):
    requests = _instances("generate_until", *((text, options) for text in prompts))
    return adapter.generate_until(requests, disable_tqdm=True)


def test_generation_stops_before_the_stop_strings(adapter):
    def made(**options):
        return _made(adapter, "the", "a red bird", "", **({"until": []} | options))

    free = made(max_gen_toks=12)
    assert free == made(until="never seen", do_sample=False, temperature=0.7, max_tokens=12)
    assert free == made(num_beams=1, top_k=0, max_new_tokens=12)
    text = free[0]
    stop = text[5:7]
    assert made(until=[stop], max_gen_toks=12)[0] == text[: text.index(stop)]
    # As lm-eval cuts: at one stop string after another, of which the second has lost its end.
    assert made(until=["", text[5:7], text[4:6]], max_gen_toks=12)[0] == text[: text.index(stop)]
    assert made(do_sample=True, temperature=5.0, max_gen_toks=12) != free


def test_the_text_of_the_end_of_text_token_ends_a_continuation(adapter, tokenizer, monkeypatch):
    ids = tokenizer.encode("one<|endoftext|>two")
    monkeypatch.setattr("gpt2.evaluate.lm_eval_adapter.continuations", lambda *a, **k: [ids])
    assert _made(adapter, "the", max_gen_toks=12) == ["one"]


@pytest.mark.parametrize("length", [1, 6, 15])
def test_a_prompt_loses_what_leaves_no_room_for_the_new_tokens(
    workplace, tokenizer, adapter, length
):
    ids = tokenizer.encode(TEXT)
    prompts = [ids[: 16 - length], ids[: 17 - length], ids[:30]]
    sampling = Sampling(temperature=0)
    expected = [
        continuations(workplace[1], [p[-(16 - length) :]], length, sampling=sampling)[0]
        for p in prompts
    ]
    assert _made(adapter, *map(tokenizer.decode, prompts), max_gen_toks=length) == [
        tokenizer.decode(ids) for ids in expected
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_gen_toks": 16}, "16 new tokens, and a context of 16 .* max_gen_toks=8$"),
        ({}, "256 new tokens, and a context of 16"),
        ({"max_gen_toks": 4, "num_beams": 4}, r"beam search \(num_beams=4\)"),
        ({"max_gen_toks": 4, "typical_p": 0.2}, "asks for typical_p in generation"),
    ],
)
def test_generation_that_is_not_possible_is_refused(adapter, options, message):
    with pytest.raises(ValueError, match=message):
        _made(adapter, "the", **options)


def _task(folder: Path, name: str, rows: list[dict], lines: str) -> None:
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / f"{name}.yaml").write_text(
        f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\n"
        f"test_split: test\n{lines}"
    )


def test_lm_eval_gives_the_figures_of_our_own_tasks(workplace, tokenizer, tmp_path):
    """HellaSwag and LAMBADA as lm-eval counts them, from the repository root's place on the path,
    where transformers finds a package `kernels` that is not the one it knows."""
    folder, model = workplace
    words = TEXT.replace(".", "").split()
    endings = [" ".join(words[i : i + 2 + i % 3]) for i in range(12)]
    questions = [
        {"activity_label": "Sea", "ctx": f"The {w}", "endings": endings[i : i + 4], "label": i % 4}
        for i, w in enumerate(words[:8])
    ]
    passages = [{"text": " ".join(words[: n + 2])} for n in range(10)] + [{"text": "the  cat"}]
    _task(
        tmp_path,
        "our_hellaswag",
        questions,
        "output_type: multiple_choice\n"
        'doc_to_text: "{{activity_label}}: {{ctx}}"\n'
        'doc_to_target: "{{label}}"\n'
        "doc_to_choice: endings\n"
        "metric_list: [{metric: acc}, {metric: acc_norm}]\n",
    )
    _task(
        tmp_path,
        "our_lambada",
        passages,
        "output_type: loglikelihood\n"
        "doc_to_text: \"{{text.split(' ')[:-1]|join(' ')}}\"\n"
        "doc_to_target: \"{{' '+text.split(' ')[-1]}}\"\n"
        "metric_list: [{metric: perplexity, aggregation: perplexity, higher_is_better: false},"
        " {metric: acc}]\n",
    )
    _task(  # without an option of its own it asks for 256 new tokens
        tmp_path,
        "our_text",
        passages,
        "output_type: generate_until\n"
        'doc_to_text: "{{text}}"\n'
        'doc_to_target: "{{text}}"\n'
        "metric_list: [{metric: exact_match}]\n",
    )
    done = run_python(
        *("-m", "gpt2.evaluate.lm_eval_adapter", str(folder / "run"), "--device", "cpu"),
        *("--tasks", "our_hellaswag,our_lambada,our_text", "--gen-kwargs", "max_gen_toks=8"),
        *("--include-path", ".", "--out", "out.json"),
        cwd=tmp_path,
        HF_HUB_OFFLINE="1",
        HF_HOME=str(tmp_path / "hf"),
    )
    assert done.returncode == 0, done.stderr
    assert "our_lambada" in done.stdout
    theirs = json.loads((tmp_path / "out.json").read_text())["results"]
    assert theirs["our_text"]["exact_match,none"] == 0
    ours = hellaswag(model, tokenizer, questions, batch_size=5)
    assert theirs["our_hellaswag"]["acc,none"] == ours.acc
    assert theirs["our_hellaswag"]["acc_norm,none"] == ours.acc_norm
    assert theirs["our_hellaswag"]["acc_stderr,none"] == pytest.approx(ours.acc_stderr)
    passed = lambada(model, tokenizer, passages, batch_size=5)
    assert theirs["our_lambada"]["acc,none"] == passed.word_acc
    assert theirs["our_lambada"]["perplexity,none"] == pytest.approx(
        passed.word_perplexity, rel=1e-4
    )


def test_an_unknown_task_is_named(workplace, monkeypatch):
    from gpt2.evaluate.lm_eval_adapter import Arguments, main

    known = SimpleNamespace(all_tasks=["lambada_openai"])
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda include_path: known)
    with pytest.raises(ValueError, match="has no task none_such"):
        main(Arguments(str(workplace[0] / "run"), tasks="lambada_openai,none_such"))


def test_without_lm_eval_the_command_says_what_to_install(tmp_path):
    code = (
        "import runpy, sys; sys.modules['lm_eval'] = None; "
        "runpy.run_module('gpt2.evaluate.lm_eval_adapter', run_name='__main__')"
    )
    done = run_python("-c", code, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.endswith("pip install -e '.[lm-eval]'\n")
    assert "Traceback" not in done.stderr
