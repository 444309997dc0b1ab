"""Decoding: strategies and their limits, the cache, batches, the command."""

import io
import itertools
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpt2.common.ranges import RANGES
from gpt2.generate.__main__ import Arguments, _read_prompts, main
from gpt2.generate.decoding import Context, continuations, generate, stream_tokens
from gpt2.generate.sampling import Sampling, distribution, next_token, strategy
from gpt2.model import GPT
from gpt2.runs.run import load_run
from gpt2.tokenizer import Tokenizer
from tests.gpt2.stand_ins import every_combination, loud_model, write_run


def _model(**options) -> GPT:
    return loud_model(**({"vocab_size": 30, "block_size": 8} | options))


def _seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _frequencies(logits: list[float], sampling: Sampling, draws: int = 20_000) -> torch.Tensor:
    rows = torch.tensor([logits]).expand(draws, -1)
    ids = next_token(rows, sampling, torch.Generator().manual_seed(1))
    return torch.bincount(ids, minlength=len(logits)) / draws


P = torch.tensor([0.4, 0.3, 0.2, 0.1])


def test_no_new_tokens_are_none():
    assert generate(_model(), torch.tensor([[1, 2]]), 0).tolist() == [[1, 2]]
    assert continuations(_model(), [[1], [2]], 0, sampling=Sampling()) == [[], []]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(temperature=0), [1, 0, 0, 0]),
        (Sampling(), [0.4, 0.3, 0.2, 0.1]),
        (Sampling(top_k=2), [4 / 7, 3 / 7, 0, 0]),
        (Sampling(top_k=50), [0.4, 0.3, 0.2, 0.1]),
        (Sampling(top_p=0.65), [4 / 7, 3 / 7, 0, 0]),  # 0.4 + 0.3 is the first sum that holds it
        (Sampling(top_p=0.75), [4 / 9, 3 / 9, 2 / 9, 0]),
        (Sampling(top_p=0.01), [1, 0, 0, 0]),  # the most probable token is always in
        (Sampling(top_p=1.0), [0.4, 0.3, 0.2, 0.1]),
        (Sampling(min_p=0.6), [4 / 7, 3 / 7, 0, 0]),  # 0.6 * 0.4 = 0.24 and more
        (Sampling(min_p=0.4), [4 / 9, 3 / 9, 2 / 9, 0]),
        (Sampling(min_p=1.0), [1, 0, 0, 0]),
        (Sampling(temperature=0.5), [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        (Sampling(temperature=0.5, top_p=0.83), [16 / 25, 9 / 25, 0, 0]),  # 25/30 holds it
        (Sampling(temperature=0.5, min_p=0.5), [16 / 25, 9 / 25, 0, 0]),  # 0.5 * 16/30 < 9/30
        (Sampling(top_k=3, top_p=0.75), [4 / 7, 3 / 7, 0, 0]),  # of 4/9, 3/9, 2/9
    ],
    ids=str,
)
def test_tokens_come_with_the_probabilities_of_the_strategy(sampling, expected):
    expected = torch.tensor(expected, dtype=torch.float32)
    got = _frequencies(P.log().tolist(), sampling)
    torch.testing.assert_close(got, expected, atol=0.015, rtol=0)
    assert (got[expected == 0] == 0).all()
    if sampling.temperature:
        torch.testing.assert_close(distribution(P.log()[None], sampling)[0], expected)


@pytest.mark.parametrize(
    ("n", "step"), [(2, 1), (3, 1), (10, 1), (20, 1), (49, 1), (997, 100), (50_257, 5_000)]
)
def test_of_equal_tokens_just_so_many_are_kept(n, step):
    logits = torch.full((1, n), 0.37)
    for k in range(1, n, step):
        for sampling in (Sampling(top_p=k / n), Sampling(top_k=k)):
            assert distribution(logits, sampling).count_nonzero() == k, sampling
    assert distribution(logits, Sampling(min_p=1.0)).count_nonzero() == n


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_no_temperature_or_penalty_overflows(dtype):
    logits = torch.tensor([[30.0, 20.0, -30.0, 30.0]], dtype=dtype)
    for cold in (1e-30, 1e-38, 1e-45, 5e-324):
        p = distribution(logits, Sampling(temperature=cold))
        assert p.tolist() == [[0.5, 0.0, 0.0, 0.5]]
    assert distribution(logits, Sampling(temperature=1e308)).tolist() == [[0.25] * 4]
    seen = torch.tensor([[True, True, True, False]])
    for penalty in (1e-4, RANGES["repetition_penalty"].low):
        p = distribution(logits, Sampling(repetition_penalty=penalty), seen)
        assert p.tolist() == [[1.0, 0.0, 0.0, 0.0]]
    most = Sampling(repetition_penalty=RANGES["repetition_penalty"].high)
    p = distribution(-logits.abs(), most, torch.ones_like(seen))
    assert p.tolist() == [[0.0, 1.0, 0.0, 0.0]]


def test_a_repetition_penalty_takes_from_tokens_seen_before_whatever_the_sign_of_their_logit():
    logits = torch.tensor([[3.0, 2.5, -1.0, -1.5]])
    seen = torch.tensor([[True, False, True, False]])
    penalised = torch.tensor([[3.0 / 2, 2.5, -1.0 * 2, -1.5]])
    sampling = Sampling(repetition_penalty=2.0, temperature=0.7)
    expected = (penalised / 0.7).softmax(dim=1)
    torch.testing.assert_close(distribution(logits, sampling, seen), expected)
    greedy = Sampling(repetition_penalty=2.0, temperature=0)
    assert next_token(logits, greedy, seen=seen) == 1


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_the_penalty_falls_on_the_prompt_and_the_continuation_also_out_of_context(positions):
    model = _model(positions=positions)
    ids = [3, 4]
    penalty = Sampling(temperature=0, repetition_penalty=1.5)
    for token in stream_tokens(model, [ids], 30, sampling=penalty):
        logits = model(torch.tensor([_context(model, ids)]))[0][0, -1]
        for i in set(ids):
            logits[i] = logits[i] / 1.5 if logits[i] > 0 else logits[i] * 1.5
        assert token == logits.argmax()
        ids.append(int(token))
    assert len(set(ids)) < len(ids)


@every_combination(
    attn=["naive", "sdpa", "flash", "triton"],
    positions=["learned", "sinusoidal"],
    norm_position=["pre", "post"],
    window=[None, 5],
)
def test_with_and_without_the_cache_the_tokens_are_the_same(options):
    """Also past the context length, which is 8 here; greedy, and drawn with a seed."""
    # Triton's interpreter takes its time: a smaller model, a shorter text.
    slow = options["attn"] == "triton"
    model = _model(**options, n_layer=1 if slow else 2, tie=False)
    prompts, n = torch.randint(0, 30, (1 if slow else 3, 3)), 12 if slow else 40
    for sampling in ({"temperature": 0}, {"top_p": 0.9, "repetition_penalty": 1.3}):
        cached, uncached = (
            generate(model, prompts, n, **sampling, generator=g, use_cache=use_cache)
            for use_cache, g in zip((True, False), _seeded(1, 1), strict=True)
        )
        assert cached.tolist() == uncached.tolist()
        varied = [row.unique().numel() > 1 for row in cached[:, 3:]]
        assert all(varied), "one token again and again would prove little"


def _context(model: GPT, ids: list[int]) -> list[int]:
    """What the model sees of a text that began with one context or less: the policy, recounted."""
    size = model.config.block_size
    start = 0
    while model.config.positions == "learned" and len(ids) - start > size:
        start += size - size // 2
    return ids[start:]


def _alone(model: GPT, prompt: list[int], n: int) -> list[int]:
    """The greedy continuation."""
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(model(torch.tensor([_context(model, ids)]))[0][0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
@pytest.mark.parametrize("block_size", [1, 2, 7, 8])
def test_past_the_context_the_older_half_is_dropped_or_positions_go_on(
    block_size, positions, use_cache
):
    model = _model(block_size=block_size, positions=positions)
    got = continuations(model, [[4]], 25, sampling=Sampling(temperature=0), use_cache=use_cache)
    assert got == [_alone(model, [4], 25)]


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"positions": "sinusoidal"}, {"window": 3}], ids=lambda o: str(o or "gpt2")
)
def test_prompts_of_different_lengths_do_not_touch_each_other(options, use_cache):
    """Their contexts are full at different times."""
    model = _model(**options)
    prompts = [[1, 2], [7], [5, 4, 3, 2, 1, 0, 9, 8], [6, 6, 6, 6, 6]]
    greedy = Sampling(temperature=0)
    together = continuations(model, prompts, 20, sampling=greedy, use_cache=use_cache)
    assert together == [_alone(model, prompt, 20) for prompt in prompts]


def test_with_a_generator_for_each_row_samples_do_not_depend_on_the_batch():
    model, prompts = _model(), [[1, 2], [7], [5, 4, 3]]

    def sample(rows, seeds):
        return continuations(model, rows, 15, sampling=Sampling(), generator=_seeded(*seeds))

    alone = [sample([prompt], [seed])[0] for prompt, seed in zip(prompts, (7, 8, 9), strict=True)]
    assert sample(prompts, (7, 8, 9)) == alone
    assert sample([prompts[2], prompts[0]], (9, 7)) == [alone[2], alone[0]]


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    """How many tokens of a row each forward pass reads."""
    read: list[int] = []
    hidden = GPT.hidden

    def counted(self, idx, *rest):
        read.append(idx.shape[1])
        return hidden(self, idx, *rest)

    monkeypatch.setattr(GPT, "hidden", counted)
    return read


def test_a_token_costs_the_model_one_position_and_the_prompt_one_pass(passes):
    generate(_model(), torch.tensor([[1, 2, 3, 4, 5]]), 8, temperature=0)
    assert passes == [5, 1, 1, 1, 4, 1, 1, 1, 1]  # the context of 8 is full once, 4 of it are kept
    passes.clear()
    generate(_model(), torch.tensor([[1, 2, 3, 4, 5]]), 8, temperature=0, use_cache=False)
    assert passes == [5, 6, 7, 8, 5, 6, 7, 8]


def test_a_long_prompt_is_read_in_pieces_and_continued_as_if_read_at_once(passes, monkeypatch):
    model, prompt = _model(), torch.tensor([[1, 2, 3, 4, 5]])
    whole = generate(model, prompt, 3, temperature=0)
    passes.clear()
    monkeypatch.setattr("gpt2.generate.decoding.PIECE", 2)
    assert torch.equal(generate(model, prompt, 3, temperature=0), whole)
    assert passes == [2, 2, 1, 1, 1]


def test_generation_ends_at_the_stop_token_and_fills_rows_that_ended_first():
    model, prompts = _model(), torch.tensor([[1], [2], [3]])
    free = generate(model, prompts, 15, temperature=0)
    stop = int(free[0, 3])
    ids = generate(model, prompts, 15, temperature=0, stop_id=stop)
    cut = continuations(model, prompts, 15, sampling=Sampling(temperature=0), stop_id=stop)
    for row, new, without in zip(ids.tolist(), cut, free.tolist(), strict=True):
        end = without.index(stop, 1) + 1 if stop in without[1:] else len(without)
        assert row[:end] == without[: min(end, len(row))]
        assert all(i == stop for i in row[end:])
        assert new == [i for i in row[1:end] if i != stop]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("beam", {}, "unknown strategy 'beam': choose greedy, sample, top-k, top-p, min-p"),
        ("top-p", {"top_p": 0.0}, "--top-p must be above 0 and at most 1, got 0.0"),
        ("top-p", {"top_p": 1.5}, "got 1.5"),
        ("top-k", {"top_k": 0}, "top-k must be at least 1"),
        ("min-p", {"min_p": 0.0}, "min-p must be above 0 and at most 1, got 0.0"),
        ("min-p", {"min_p": float("nan")}, "got nan"),
        ("sample", {"temperature": -1.0}, r"temperature must be at least 0 \(0: greedy\), got -1"),
        ("greedy", {"repetition_penalty": 0.0}, "repetition-penalty must be at least 1e-30"),
    ],
)
def test_impossible_strategies_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        strategy(name, **({"temperature": 1.0, "top_k": 50, "top_p": 0.9} | options))


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (torch.zeros(1, 0, dtype=torch.long), "the prompt is empty"),
        ([[1], []], "the prompt is empty"),
        ([], "there is no prompt"),
        ([[1] * 9], "the prompt has 9 tokens and the model's context 8: shorten it"),
    ],
)
def test_prompts_that_cannot_be_continued_are_refused(prompts, message):
    with pytest.raises(ValueError, match=message):
        next(stream_tokens(_model(), prompts, 3, sampling=Sampling()))


def test_sinusoidal_positions_take_a_prompt_longer_than_the_context():
    model = _model(positions="sinusoidal")
    prompt = [i % 30 for i in range(20)]
    got = continuations(model, [prompt], 5, sampling=Sampling(temperature=0))
    assert got == [_alone(model, prompt, 5)]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("work") / "run"
    tokenizer = Tokenizer.train(["the cat sat on the mat, and the dog sat too. "] * 3, 270)
    write_run(folder, Path("no.txt"), tokenizer, block_size=16)
    return str(folder)


def _output(capsys, run: str, **options) -> str:
    main(Arguments(run, **({"max_tokens": 30, "device": "cpu"} | options)))
    return capsys.readouterr().out


def test_samples_of_many_prompts_are_those_of_each_alone(capsys, run, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("the cat\n\nthe dog sat on\n", encoding="utf-8")
    together = _output(capsys, run, prompt_file=str(file), samples=2, batch_size=3)
    parts = together.split("--- prompt ")[1:]
    assert [part.partition("\n")[0] for part in parts] == [
        f"{prompt}, sample {sample}" for prompt in (1, 2) for sample in (1, 2)
    ]
    each = itertools.product(("the cat", "the dog sat on"), (0, 1))
    for part, (prompt, sample) in zip(parts, each, strict=True):
        alone = _output(capsys, run, prompt=(prompt,), seed=1337 + sample)
        assert part.partition("\n")[2] == alone
    assert len({part.partition("\n")[2] for part in parts}) == 4


@pytest.mark.parametrize("samples", [1, 2])
def test_no_cache_means_none(capsys, run, passes, samples):
    _output(capsys, run, samples=samples, cache=False, max_tokens=3)
    assert passes == [1, 2, 3]


def test_a_compiled_text_is_the_same_text(capsys, run):
    options = {"strategy": "greedy", "dtype": "bf16", "prompt": ("the cat",)}
    assert _output(capsys, run, **options, compile=True) == _output(capsys, run, **options)


def test_a_compiler_that_fails_is_named(run, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    torch.compiler.reset()
    # monkeypatch would delete the option, which PyTorch keeps elsewhere than in __dict__.
    no_compiler = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)})
    with no_compiler, pytest.raises(ValueError, match=r"torch.compile failed: .*leave --compile"):
        main(Arguments(run, device="cpu", compile=True))


@pytest.mark.parametrize(
    ("encoding", "line_end"),
    [("utf-8", "\n"), ("utf-8-sig", "\r\n"), ("utf-16", "\r\n"), ("utf-8", "\r")],
)
def test_prompts_are_the_lines_of_a_file_however_it_was_saved(tmp_path, encoding, line_end):
    """A form feed, or U+2028, ends no line."""
    prompts = ["the cat\u2028sat", "on\x0c a mat", "<|endoftext|>the dog"]
    text = line_end.join([*prompts, " ", ""])
    (tmp_path / "prompts").write_bytes(text.encode(encoding))
    found = _read_prompts(Arguments("run", prompt_file=str(tmp_path / "prompts")))
    assert found == prompts


def test_prompts_are_the_texts_of_a_table(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"text": "the cat\\r\\nsat"}\n{"text": null}\n{"text": "a dog"}\n'
    )
    (tmp_path / "a.csv").write_text('text,n\n"the cat\nsat",1\n" ",2\na dog,3\n')
    for name in ("a.jsonl", "a.csv"):
        found = _read_prompts(Arguments("run", prompt_file=str(tmp_path / name)))
        assert found == ["the cat\nsat", "a dog"]


def test_no_prompt_begins_a_document(capsys, run):
    begun = _output(capsys, run)
    assert begun == _output(capsys, run, prompt=("",)) != "\n"
    marker = "<|endoftext|>"
    assert _output(capsys, run, prompt=(marker,)) == marker + begun


def _typed(capsys, monkeypatch, run: str, *lines: str, **options) -> list[str]:
    """What is answered to lines of the standard input, greedily unless `options` say otherwise."""
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    output = _output(capsys, run, **{"interactive": True, "strategy": "greedy"} | options)
    return output.splitlines()


@pytest.fixture
def added(monkeypatch) -> list[int]:
    """The tokens that a context of one row gets."""
    text: list[int] = []
    extend = Context.extend

    def extended(self, tokens):
        text.extend(tokens[0])
        extend(self, tokens)

    monkeypatch.setattr(Context, "extend", extended)
    return text


def test_turns_continue_one_text_of_which_each_token_is_read_once(
    capsys, monkeypatch, run, added, passes
):
    _typed(capsys, monkeypatch, run, "the cat", " dog", max_tokens=3)
    model, tokenizer = load_run(run).model, Tokenizer.load(run)
    first, second = tokenizer.encode("the cat"), tokenizer.encode(" dog")
    assert passes == [len(first), 1, 1, 1 + len(second), 1, 1]
    turn = len(first) + 3
    assert added[turn : turn + len(second)] == second
    for end in (len(first), turn + len(second)):
        assert added[end : end + 3] == _alone(model, added[:end], 3)


def test_settings_change_between_turns_and_mistakes_end_nothing(capsys, monkeypatch, run):
    lines = ["/temperature 0.7", "/top-k 5", "/top-p 2", "/top-k x", "/beams 3", "/top-k 1", "the"]
    *said, last = _typed(capsys, monkeypatch, run, *lines, max_tokens=5)
    assert said[0].startswith("strategy sample, temperature 0.7, top-k 50, ")
    assert said[1].startswith("strategy top-k, temperature 0.7, top-k 5, ")
    assert said[2:5] == [
        "--top-p must be above 0 and at most 1, got 2.0",
        "/top-k takes a whole number, got 'x'",
        "there is no /beams: /help lists what there is",
    ]
    assert [last] == _typed(capsys, monkeypatch, run, "the", max_tokens=5)
    again = _typed(capsys, monkeypatch, run, "a", "/new", "the", "/quit", "a", max_tokens=5)
    assert again[1:] == [last]
    assert _typed(capsys, monkeypatch, run, *lines[:-1], "/help", max_tokens=5)[-1] == said[5]


def test_after_the_end_of_a_document_the_next_one_begins(capsys, monkeypatch, run, added):
    """A word is set off by a space from the text before it, not from the end of a document."""
    tokenizer = Tokenizer.load(run)
    (o,) = tokenizer.encode("o")
    made = iter([o, tokenizer.eot_id, o])
    monkeypatch.setattr("gpt2.generate.decoding.next_token", lambda *_: torch.tensor([next(made)]))
    assert _typed(capsys, monkeypatch, run, "cat", "dog", "cat", max_tokens=1) == ["o", "", "o"]
    assert tokenizer.decode(added) == "cato dog<|endoftext|>cato"


@pytest.mark.skipif(sys.platform == "win32", reason="a pseudo-terminal is Unix's")
def test_ctrl_c_stops_an_answer_and_not_the_program():
    """The model that ships repeats itself without end here."""
    import pty

    ours, theirs = pty.openpty()
    words = "-m gpt2.generate demo --interactive --strategy greedy --prompt the --max-tokens 999999"
    # In a shell's background SIGINT is ignored, here and by what is started here.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen([sys.executable, *words.split()], stdin=theirs, stdout=theirs) as process:
        signal.signal(signal.SIGINT, before)
        os.close(theirs)

        def send(what: int | bytes, until: bytes) -> None:
            """Again after a second: the line editor loses what comes while it begins a line."""
            shown = b""
            while until not in shown and process.poll() is None:
                if isinstance(what, bytes):
                    os.write(ours, what)
                else:
                    process.send_signal(what)
                while until not in shown and select.select([ours], [], [], 1)[0]:
                    try:
                        shown += os.read(ours, 1024)
                    except OSError:  # the program has ended
                        break

        try:
            shown = b""
            while shown.count(b" ") < 200:  # in the middle of its answer
                shown += os.read(ours, 1024)
            send(signal.SIGINT, until=b"Ctrl-D ends.\r\n> ")
            send(signal.SIGINT, until=b"Ctrl-D or /quit ends\r\n> ")
            send(b"/quit\n", until=b"never said")
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()
    os.close(ours)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": ("word " * 50,)}, "tokens and the model's context 16: shorten it"),
        ({"prompt": ("a",), "prompt_file": "b"}, "--prompt and --prompt-file both"),
        ({"interactive": True, "samples": 2}, "--interactive continues one text"),
        ({"interactive": True, "prompt": ("a", "b")}, "--interactive continues one text"),
        ({"compile": True, "samples": 2}, "--compile is for one text"),
        ({"compile": True, "cache": False}, "--compile is for one text"),
        ({"prompt_file": "blank.txt"}, "blank.txt holds no prompt"),
        ({"prompt_file": "latin.txt"}, "latin.txt is not UTF-8: byte 0"),
    ],
)
def test_a_mistake_is_one_sentence_before_any_text(
    capsys, run, tmp_path, monkeypatch, options, message
):
    monkeypatch.chdir(tmp_path)
    Path("blank.txt").write_text("\n \n")
    Path("latin.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        main(Arguments(run, device="cpu", **options))
    assert not capsys.readouterr().out
