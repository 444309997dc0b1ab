"""A model that reads text in pieces, through a key-value cache, is the one that reads it whole."""

import functools

import pytest
import torch

import kernels.attention
from gpt2.attention import BACKENDS, ScaledAttention, attend_past, causal_mask
from gpt2.cache import KVCache
from gpt2.model import GPT
from kernels.testing import judge
from tests.gpt2.stand_ins import CONTEXT, V, every_combination, loud_model


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch):
    """Caches that grow, and that are copied, several times in a text of these tests."""
    monkeypatch.setattr("gpt2.cache.STEP", 4)


def _all_next_logits(model: GPT, idx: torch.Tensor, pieces: list[int]) -> list[torch.Tensor]:
    """The logits (B, V) after each piece of the text."""
    cache = KVCache(model.config, len(idx))
    return [model.next_logits(piece, cache) for piece in idx.split(pieces, dim=1)]


@pytest.mark.parametrize("pieces", [[1] * 17, [9, *[1] * 8], [5, 7, 1, 3, 1], [17]], ids=str)
@every_combination(
    positions=["learned", "sinusoidal"], norm_position=["pre", "post"], window=[None, 1, 6]
)
def test_pieces_of_any_size_give_the_logits_of_the_whole_text(options, pieces):
    model = loud_model(**options).double()
    idx = torch.randint(0, V, (3, 17))
    whole, _ = model(idx)
    end = 0
    for size, logits in zip(pieces, _all_next_logits(model, idx, pieces), strict=True):
        end += size
        torch.testing.assert_close(logits, whole[:, end - 1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("pieces", [[1] * 17, [9, *[1] * 8], [5, 7, 1, 3, 1]], ids=str)
@every_combination(
    positions=["learned", "sinusoidal"], restart_positions=[False, True], window=[None, 3]
)
def test_pieces_of_documents_give_the_logits_of_the_whole_text(options, pieces):
    model = loud_model(**options, attend="within-documents", end_of_text=5).double()
    idx = torch.randint(6, V, (3, 17))
    idx[1, [2, 9, 10]] = idx[2, [0, 16]] = 5
    whole, _ = model(idx)
    end = 0
    for size, logits in zip(pieces, _all_next_logits(model, idx, pieces), strict=True):
        end += size
        torch.testing.assert_close(logits, whole[:, end - 1], rtol=0, atol=1e-12)


@every_combination(
    norm_position=["pre", "post"], window=[None, 6], mlp=["gelu", "swiglu"],
    documents=[{}, {"attend": "within-documents", "end_of_text": 5, "restart_positions": True}],
)  # fmt: skip
def test_compiled_tokens_have_the_logits_of_the_whole_text_and_are_compiled_once(
    options, monkeypatch
):
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    model = loud_model(**options.pop("documents"), **options).double()
    idx = torch.randint(0, V, (1, 17))
    whole, _ = model(idx)
    model.compile_next_token()
    cache = KVCache(model.config, 1)
    for end, piece in enumerate(idx.split([3, *[1] * 14], dim=1), 3):
        with torch._dynamo.config.patch(error_on_recompile=True):
            logits = model.next_logits(piece, cache)
        torch.testing.assert_close(logits, whole[:, end - 1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("name", ["naive", "sdpa", "flash", "triton"])
def test_every_backend_fills_the_cache(name, window):
    idx = torch.randint(0, V, (2, 12))
    model = loud_model(attn="naive", window=window)
    whole, _ = model(idx)
    model.use(attn=name)
    for end, logits in zip(range(9, 13), _all_next_logits(model, idx, [9, 1, 1, 1]), strict=True):
        torch.testing.assert_close(logits, whole[:, end - 1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [None, 3])
def test_several_tokens_after_others_are_attended_to_by_our_kernel(window, monkeypatch):
    calls = []
    attention = kernels.attention.attention

    def counted(q, k, v, **options):
        calls.append((q.shape[1], k.shape[1]))
        return attention(q, k, v, **options)

    monkeypatch.setattr("kernels.attention.attention", counted)
    idx = torch.randint(0, V, (2, 9))
    model = loud_model(attn="naive", window=window, n_layer=1)
    whole, _ = model(idx)
    model.use(attn="triton")
    for end, logits in zip((4, 8, 9), _all_next_logits(model, idx, [4, 4, 1]), strict=True):
        torch.testing.assert_close(logits, whole[:, end - 1], rtol=1e-5, atol=1e-5)
    assert calls == [(4, 8)]


@every_combination(
    positions=["learned", "sinusoidal"], window=[None, 4],
    documents=[{}, {"attend": "within-documents", "end_of_text": 0, "restart_positions": True}],
)  # fmt: skip
def test_rows_of_different_lengths_do_not_touch_each_other(options):
    model = loud_model(**options.pop("documents"), **options).double()
    lengths = [3, 11, 1, 7]
    rows = [torch.randint(0, V, (n + 10,)) for n in lengths]
    cache = KVCache(model.config, len(rows))
    first = torch.zeros(len(rows), max(lengths), dtype=torch.long)
    for row, length, own in zip(rows, lengths, first, strict=True):
        own[:length] = row[:length]
    # What is not computed is filled with NaN, which no weight of zero hides.
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        got = [model.next_logits(first, cache, lengths)]
        for step, size in ((0, 1), (1, 1), (2, 4), (6, 1), (7, 3)):
            ends = [(n + step, n + step + size) for n in lengths]
            piece = torch.stack([row[a:b] for row, (a, b) in zip(rows, ends, strict=True)])
            got.append(model.next_logits(piece, cache))
    finally:
        torch.use_deterministic_algorithms(False)
    assert cache.lengths == [n + 10 for n in lengths]
    for b, row in enumerate(rows):
        whole, _ = model(row[None])
        for logits, read in zip(got, (0, 1, 2, 6, 7, 10), strict=True):
            expected = whole[0, lengths[b] + read - 1]
            torch.testing.assert_close(logits[b], expected, rtol=0, atol=1e-12)


def test_what_is_forgotten_leaves_no_trace():
    model = loud_model().double()
    idx = torch.randint(0, V, (2, 12))
    cache = KVCache(model.config, 2)
    model.hidden(idx[:, :8], cache)
    model.hidden(torch.randint(0, V, (2, 5)), cache)
    cache.forget([5, 5])
    got = model.next_logits(idx[:, 8:], cache)
    torch.testing.assert_close(got, model.next_logits(idx), rtol=0, atol=1e-12)


@pytest.mark.parametrize("documents", [{}, {"attend": "within-documents", "end_of_text": 0}])
def test_replaced_rows_are_those_of_the_other_cache(documents):
    model = loud_model(**documents).double()
    old, new = torch.randint(0, V, (3, 9)), torch.randint(0, V, (2, 4))
    old[:, 3] = new[:, 2] = 0
    cache, other = KVCache(model.config, 3), KVCache(model.config, 2)
    model.hidden(old, cache)
    model.hidden(new, other)
    cache.replace([0, 2], other)
    token = torch.randint(0, V, (3, 1))
    got = model.next_logits(token, cache)
    for b, row in enumerate([new[0], old[1], new[1]]):
        expected = model.next_logits(torch.cat([row, token[b]])[None])[0]
        torch.testing.assert_close(got[b], expected, rtol=0, atol=1e-12)


def test_learned_positions_end_with_a_cache_too():
    model = loud_model()
    cache = KVCache(model.config, 1)
    model.hidden(torch.zeros(1, CONTEXT, dtype=torch.long), cache)
    with pytest.raises(ValueError, match="41 tokens do not fit the 40 learned positions"):
        model.hidden(torch.zeros(1, 1, dtype=torch.long), cache)


@pytest.mark.parametrize(("T", "S"), [(1, 1), (1, 65), (4, 9)])
def test_attention_to_the_past_is_the_end_of_attention_to_all(T, S):
    qkv = torch.randn(2, S, 3, 3, 16, dtype=torch.float64)
    whole = BACKENDS["naive"](qkv, window=None, dropout_p=0.0)
    mask = causal_mask(S)[S - T :].expand(2, 1, T, S) if T > 1 else None
    got = attend_past(qkv[:, S - T :, 0], qkv[:, :, 1:], mask)
    torch.testing.assert_close(got, whole[:, S - T :], rtol=0, atol=1e-14)


@pytest.mark.parametrize("windowed", [False, True])
def test_one_token_of_16_bits_attends_to_the_past_within_the_error_of_plain_attention(windowed):
    torch.manual_seed(0)
    q, kv = torch.randn(2, 1, 3, 16).bfloat16(), torch.randn(2, 65, 2, 3, 16).bfloat16()
    mask = torch.arange(65).expand(2, 1, 1, 65) >= 40 if windowed else None
    k, v = kv.transpose(1, 3).unbind(2)
    plain, exact = (
        ScaledAttention()(*(t.to(dtype) for t in (q.transpose(1, 2), k, v)), mask).transpose(1, 2)
        for dtype in (torch.bfloat16, torch.float64)
    )
    y = attend_past(q, kv, mask)
    assert y.dtype == torch.bfloat16
    assert judge("y", y, plain, exact).within


def test_a_cache_grows_by_steps_and_has_the_positions_of_a_head_in_a_row():
    model = loud_model()
    cache = KVCache(model.config, 2)
    for piece, room in (((2, 8), 8), ((2, 1), 12)):
        model.hidden(torch.zeros(piece, dtype=torch.long), cache)
        for kv in cache.kv.values():
            assert kv.shape[1] == room
            assert kv.stride()[1] == kv.shape[4]
