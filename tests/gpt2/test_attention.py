"""Attention backends agree with each other and with PyTorch."""

import sys
from types import SimpleNamespace

import pytest
import torch

from gpt2.attention import (
    BACKENDS,
    BasicAttention,
    ScaledAttention,
    causal_mask,
    naive,
)
from gpt2.backends import unusable
from gpt2.config import GPTConfig
from kernels.documents import document_bounds
from kernels.testing import compare
from tests.gpt2.stand_ins import run_forked

# Those that train in fp32 on a CPU.
CPU = {"device": torch.device("cpu"), "dtype": torch.float32}
HERE = [name for name in BACKENDS if unusable(name, GPTConfig(), **CPU) is None]


def _qkv(T: int, H: int = 3, D: int = 16, B: int = 2) -> torch.Tensor:
    return torch.randn(B, T, 3, H, D, requires_grad=True)


def _reference(window: int | None, documents: torch.Tensor | None = None):
    def attend(qkv):
        q, k, v = (t.transpose(1, 2) for t in qkv.unbind(2))
        T = q.shape[2]
        mask = causal_mask(T, window)
        if documents is not None:
            begins, ends = documents[:, :, None, :, None]
            keys = torch.arange(T)
            mask = mask & (keys >= begins) & (keys < ends)
        return ScaledAttention()(q, k, v, mask).transpose(1, 2)

    return attend


@pytest.mark.parametrize("window", [None, 1, 5, 400])
@pytest.mark.parametrize("T", [1, 7, 65])
@pytest.mark.parametrize("name", HERE)
def test_backends_compute_causal_attention_and_its_gradient(name, T, window):
    compare(
        lambda qkv: BACKENDS[name](qkv, window=window, dropout_p=0.0),
        _reference(window),
        {"qkv": _qkv(T)},
        # A flash backward takes the difference dP - rowsum(o * do) of two sums of D unit products,
        # where plain PyTorch goes through the softmax; with T = 1 it is exactly zero.
        cancelled={"dqkv": 16.0},
    )


def _documents(T: int) -> torch.Tensor:
    """One document in the first row, and in the second those that begin at 0, 1, 5, 6 and T - 1."""
    first = torch.zeros(2, T, dtype=torch.bool)
    first[1, [i for i in (1, 5, 6, T - 1) if i < T]] = True
    return document_bounds(first)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("T", [1, 7, 65])
@pytest.mark.parametrize("name", HERE)
def test_backends_attend_within_documents(name, T, window):
    documents = _documents(T)
    compare(
        lambda qkv: BACKENDS[name](qkv, window=window, dropout_p=0.0, documents=documents),
        _reference(window, documents),
        {"qkv": _qkv(T)},
        cancelled={"dqkv": 16.0},
    )


def test_the_mask_of_sdpa_in_a_compiled_model_is_that_of_the_documents():
    qkv, options = _qkv(20), {"window": None, "dropout_p": 0.0, "documents": _documents(20)}
    whole = torch.compile(BACKENDS["sdpa"], fullgraph=True, backend="eager")
    torch.testing.assert_close(whole(qkv, **options), naive(qkv, **options))


@pytest.mark.parametrize("window", [None, 3])
def test_flash_gives_its_package_the_documents(window, monkeypatch):
    """The package stands for its documented function, by a loop over the sequences it is given."""
    calls = []

    def varlen(qkv, cu_seqlens, max_seqlen, dropout_p, causal, window_size):
        calls.append((cu_seqlens.dtype, max_seqlen, dropout_p, causal, window_size))
        return _one_by_one(qkv, cu_seqlens, window)

    package = SimpleNamespace(flash_attn_varlen_qkvpacked_func=varlen)
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setattr("gpt2.attention.has_flash_attn", lambda device_type: True)
    qkv, documents = _qkv(20), _documents(20)
    got = BACKENDS["flash"](qkv, window=window, dropout_p=0.0, documents=documents)
    torch.testing.assert_close(got, naive(qkv, window=window, dropout_p=0.0, documents=documents))
    assert calls == [(torch.int32, 20, 0.0, True, (-1 if window is None else window - 1, 0))]


def _one_by_one(qkv, cu_seqlens, window):
    parts = qkv[None].split(cu_seqlens.diff().tolist(), dim=1)
    return torch.cat([naive(part, window=window, dropout_p=0.0)[0] for part in parts])


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(
    ("name", "module"), [("flash3", "flash_attn_interface"), ("flash4", "flash_attn.cute")]
)
def test_newer_flash_attention_is_called_as_it_is_documented(name, module, window, monkeypatch):
    """The fourth returns the log-sum-exp as well, and takes no window of -1."""

    def shown(q, k, v, causal, window_size=(None, None)):
        assert causal
        assert window_size == ((None, None) if window is None else (window - 1, 0))
        o = naive(torch.stack([q, k, v], dim=2), window=window, dropout_p=0.0)
        return (o, None) if name == "flash4" else o

    def varlen(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, window_size=None
    ):
        assert (max_seqlen_q, max_seqlen_k, causal) == (20, 20, True)
        assert (window_size is None) == (window is None)
        assert torch.equal(cu_seqlens_q, cu_seqlens_k)
        o = _one_by_one(torch.stack([q, k, v], dim=1), cu_seqlens_q, window)
        return (o, None) if name == "flash4" else o

    package = SimpleNamespace(flash_attn_func=shown, flash_attn_varlen_func=varlen)
    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(cute=package))
    monkeypatch.setitem(sys.modules, module, package)
    qkv = _qkv(20)
    for documents in (None, _documents(20)):
        options = {"window": window, "dropout_p": 0.0, "documents": documents}
        torch.testing.assert_close(BACKENDS[name](qkv, **options), naive(qkv, **options))
    with pytest.raises(ValueError, match=f"{module} has no dropout"):
        BACKENDS[name](qkv, window=window, dropout_p=0.1, documents=None)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("window", [None, 3])
def test_flex_attention_sees_the_same_keys(window):
    """Forward alone: on a CPU it has no backward."""
    qkv = _qkv(65).detach()
    for documents in (None, _documents(65), _documents(65).clone()):
        options = {"window": window, "dropout_p": 0.0, "documents": documents}
        torch.testing.assert_close(BACKENDS["flex"](qkv, **options), naive(qkv, **options))


def test_causal_mask_shows_the_past_and_the_window_cuts_it():
    assert causal_mask(3).tolist() == [[True, False, False], [True, True, False], [True] * 3]
    assert causal_mask(4, window=2).sum(dim=1).tolist() == [1, 2, 2, 2]


def test_scaled_attention_is_basic_attention_on_scaled_queries():
    q, k, v = torch.randn(3, 2, 5, 16)
    torch.testing.assert_close(ScaledAttention()(q, k, v), BasicAttention()(q / 4, k, v))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32], ids=str)
def test_masks_are_boolean_or_of_0_and_1(dtype):
    q, k, v = torch.randn(3, 2, 5, 16, requires_grad=True)
    mask = causal_mask(5).index_fill(0, torch.tensor(2), False)  # the third query sees no key
    y = ScaledAttention()(q, k, v, mask.to(dtype))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(y, expected)
    assert (y[:, 2] == 0).all()
    with torch.autograd.set_detect_anomaly(True):  # no NaN on the way either
        grads = torch.autograd.grad(y.square().sum(), [q, k, v])
    wanted = torch.autograd.grad(expected.square().sum(), [q, k, v])
    torch.testing.assert_close(grads, wanted)


@pytest.mark.parametrize("hidden", [-torch.inf, torch.nan, 0.5])
def test_other_masks_are_refused(hidden):
    q = torch.randn(2, 5, 16)
    mask = torch.zeros(5, 5).masked_fill(~causal_mask(5), hidden)
    with pytest.raises(ValueError, match="the mask must be boolean, or hold 1 for visible and 0"):
        ScaledAttention()(q, q, q, mask)


def test_an_additive_mask_is_passed_as_the_message_says():
    q = torch.randn(2, 5, 16)
    mask = torch.zeros(5, 5).masked_fill(~causal_mask(5), -torch.inf)
    mask[2] = -torch.inf
    expected = torch.nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=mask)
    torch.testing.assert_close(ScaledAttention()(q, q, q, mask == 0), expected)


def test_multi_head_attention_equals_pytorchs_own():
    """torch.nn.MultiheadAttention serves as a reference only."""
    from gpt2.model import MultiHeadAttention

    ours = MultiHeadAttention(GPTConfig(n_head=4, n_embd=32, attn="naive"))
    theirs = torch.nn.MultiheadAttention(32, 4, batch_first=True)
    theirs.in_proj_weight, theirs.in_proj_bias = ours.c_attn.weight, ours.c_attn.bias
    theirs.out_proj = ours.c_proj
    x = torch.randn(2, 9, 32)
    expected, _ = theirs(x, x, x, attn_mask=~causal_mask(9))
    torch.testing.assert_close(ours(x), expected)


def test_no_backend_sees_the_future():
    qkv = _qkv(12).detach()
    changed = qkv.clone()
    changed[:, 7:] = torch.randn_like(changed[:, 7:])
    for name in ("naive", "sdpa", "sdpa-math", "flash"):
        before, after = (BACKENDS[name](t, window=None, dropout_p=0.0) for t in (qkv, changed))
        torch.testing.assert_close(before[:, :7], after[:, :7], rtol=0, atol=0, msg=name)


def test_dropout_acts_on_the_weights_of_naive_and_sdpa():
    qkv = _qkv(64).detach()
    for name in ("naive", "sdpa"):
        exact = BACKENDS[name](qkv, window=None, dropout_p=0.0)
        draws = [BACKENDS[name](qkv, window=None, dropout_p=0.5) for _ in range(400)]
        assert not torch.equal(draws[0], draws[1])
        spread = torch.stack(draws).std(dim=0) / 400**0.5
        assert ((torch.stack(draws).mean(dim=0) - exact).abs() < 6 * spread + 1e-6).all(), name


def test_the_module_shows_who_sees_whom():
    done = run_forked("-m", "gpt2.attention")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "    x x x . .    . x x . ." in done.stdout.splitlines()
