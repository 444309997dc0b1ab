"""Decoding strategies and their limits (A22-A24, B16, C16)."""

import pytest
import torch

from gpt2.config import GPTConfig
from gpt2.generate import Sampling, generate, next_token, strategy
from gpt2.model import GPT


def _model(**options) -> GPT:
    defaults = {"n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_size": 30, "block_size": 8}
    return GPT(GPTConfig(**(defaults | options))).eval()


def _frequencies(logits: list[float], sampling: Sampling, draws: int = 20_000) -> torch.Tensor:
    rows = torch.tensor([logits]).expand(draws, -1)
    ids = next_token(rows, sampling, torch.Generator().manual_seed(1))
    return torch.bincount(ids, minlength=len(logits)) / draws


P = torch.tensor([0.4, 0.3, 0.2, 0.1])


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
        (Sampling(temperature=0.5), [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
    ],
    ids=str,
)
def test_tokens_come_with_the_probabilities_of_the_strategy(sampling, expected):
    got = _frequencies(P.log().tolist(), sampling)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float32), atol=0.015, rtol=0)
    assert (got[torch.tensor(expected) == 0] == 0).all()


def test_greedy_generation_takes_the_most_probable_token_each_time():
    model = _model()
    ids = generate(model, torch.tensor([[1, 2, 3]]), 4, temperature=0)[0]
    for t in range(3, 7):
        assert ids[t] == model(ids[None, :t])[0][0, -1].argmax()


def test_a_seed_fixes_the_samples():
    model, prompt = _model(), torch.tensor([[5]])

    def sample(seed):
        return generate(model, prompt, 20, generator=torch.Generator().manual_seed(seed)).tolist()

    assert sample(1) == sample(1) != sample(2)


def test_prompts_in_a_batch_do_not_touch_each_other():
    model = _model()
    together = generate(model, torch.tensor([[1, 2], [7, 4]]), 6, temperature=0)
    alone = generate(model, torch.tensor([[7, 4]]), 6, temperature=0)
    assert together[1].tolist() == alone[0].tolist()


def test_generation_slides_past_learned_positions_and_runs_on_with_sinusoidal_ones():
    model = _model()
    ids = generate(model, torch.tensor([[1]]), 20, temperature=0)[0]
    assert len(ids) == 21
    assert ids[-1] == model(ids[None, -9:-1])[0][0, -1].argmax()
    model = _model(positions="sinusoidal")
    ids = generate(model, torch.tensor([[1]]), 20, temperature=0)[0]
    assert ids[-1] == model(ids[None, :-1])[0][0, -1].argmax()


def test_generation_ends_at_the_stop_token_and_fills_rows_that_ended_first():
    model = _model()
    free = generate(model, torch.tensor([[1], [2], [3]]), 15, temperature=0)
    stop = int(free[0, 3])
    ids = generate(model, torch.tensor([[1], [2], [3]]), 15, temperature=0, stop_id=stop)
    for row, without in zip(ids.tolist(), free.tolist(), strict=True):
        end = without.index(stop, 1) + 1 if stop in without[1:] else len(without)
        assert row[:end] == without[: min(end, len(row))]
        assert all(i == stop for i in row[end:])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("beam", {}, "unknown strategy 'beam'"),
        ("top-p", {"top_p": 0.0}, r"top-p must be in \(0, 1\], got 0.0"),
        ("top-p", {"top_p": 1.5}, "got 1.5"),
        ("top-k", {"top_k": 0}, "top-k must be at least 1"),
        ("sample", {"temperature": -1.0}, "temperature must be 0"),
    ],
)
def test_impossible_strategies_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        strategy(name, **({"temperature": 1.0, "top_k": 50, "top_p": 0.9} | options))


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="the prompt is empty"):
        generate(_model(), torch.zeros(1, 0, dtype=torch.long), 3)
