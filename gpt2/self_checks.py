"""What `python -m gpt2.attention` and `python -m gpt2.model` show: claims, measured on the spot.

Each claim is printed with the figures behind it; one that does not hold ends the command with
status 1. The modules under test are imported here under their own names, not as `__main__`.
"""

import math
import sys

import torch
from torch import Tensor

from gpt2.attention import (
    BACKENDS,
    BasicAttention,
    ScaledAttention,
    causal_mask,
    describe,
    naive,
    unusable,
)
from gpt2.config import PRESETS, GPTConfig
from gpt2.model import GPT, count_parameters

_TINY = GPTConfig(n_layer=2, n_head=4, n_embd=64, vocab_size=1000, block_size=64)


class _Claims:
    """Prints claims and remembers whether all held."""

    def __init__(self) -> None:
        self._failed = 0
        torch.manual_seed(0)

    def show(self, claim: str, holds: bool) -> None:
        print(f"{'ok   ' if holds else 'WRONG'}  {claim}")
        self._failed += not holds

    def end(self) -> None:
        if self._failed:
            sys.exit(f"{self._failed} of the claims above do not hold")


def check_attention() -> None:
    """Mask, future, scale, and the agreement of all backends."""
    claims = _Claims()
    print("who sees whom (rows: queries, columns: keys), causal, and with a window of 2:")
    for row, windowed in zip(causal_mask(5), causal_mask(5, window=2), strict=True):
        print(f"    {_dots(row)}        {_dots(windowed)}")

    q, k, v = torch.randn(3, 6, 16)
    mask, changed = causal_mask(6), v.clone()
    changed[-1] += 1
    basic, scaled = BasicAttention(), ScaledAttention()
    moved = (basic(q, k, v) - basic(q, k, changed))[:-1].abs().max()
    claims.show(
        f"BasicAttention sees the future: the last value moves outputs before it by {moved:.2g}",
        bool(moved > 0),
    )
    moved = (scaled(q, k, v, mask) - scaled(q, k, changed, mask))[:-1].abs().max()
    claims.show(
        f"ScaledAttention with the mask does not: it moves them by {moved:.2g}", bool(moved == 0)
    )
    print("scores of independent q and k, and the largest of 64 softmax weights on average:")
    for D in (16, 64, 256):
        q, k = torch.randn(2000, D), torch.randn(64, D)
        scores = q @ k.T
        normal = scores / math.sqrt(D)
        sharp, soft = (s.softmax(dim=-1).amax(dim=-1).mean() for s in (scores, normal))
        claims.show(
            f"D = {D:3}: variance of q.k {scores.var():6.1f}, weight {sharp:.2f}; "
            f"of q.k / sqrt(D) {normal.var():.2f}, weight {soft:.2f}",
            bool(0.8 < normal.var() < 1.25 and soft < sharp),
        )
    for window in (None, 16):
        _compare_backends(claims, window)
    claims.end()


def _dots(row: Tensor) -> str:
    return " ".join("x" if seen else "." for seen in row)


def _compare_backends(claims: _Claims, window: int | None) -> None:
    """The distance of each backend from masked matrix products in float64."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    config = GPTConfig(n_layer=1, n_head=4, n_embd=128, window=window)
    qkv = torch.randn(2, 100, 3, 4, 32, device=device, dtype=dtype)
    exact = naive(qkv.double(), window=window, dropout_p=0.0)
    # Sums of other lengths and in another order: a few roundings of values below the largest.
    allowed = 8 * torch.finfo(dtype).eps * exact.abs().max()
    print(f"distance from float64, {dtype} on {device.type}, window {window}:")
    for name, backend in BACKENDS.items():
        if reason := unusable(name, config, device=device, dtype=dtype):
            print(f"  --   {name}: cannot run here: {reason}")
            continue
        error = (backend(qkv, window=window, dropout_p=0.0).double() - exact).abs().max()
        claims.show(f"{name}: {error:.1e} ({describe(name, device)})", bool(error <= allowed))


def check_model() -> None:
    """Parameters, a forward pass, the loss of a fresh model, causality, the tied head."""
    claims = _Claims()
    with torch.device("meta"):  # shapes without memory
        gpt2 = GPT(PRESETS["gpt2"])
    names = {
        "wte": "token embedding, and output head",
        "wpe": "positions",
        ".attn.": "attention of all layers",
        ".mlp.": "MLPs of all layers",
        "ln_": "norms",
    }
    print("parameters of GPT-2 small:")
    total = 0
    for key, name in names.items():
        count = sum(p.numel() for own, p in gpt2.named_parameters() if key in own)
        if key == "wte":  # rows that only pad the vocabulary
            count -= (gpt2.config.padded_vocab_size - gpt2.config.vocab_size) * gpt2.config.n_embd
        print(f"{count:15,}  {name}")
        total += count
    claims.show(
        f"{total:,} together, as GPT-2 small has",
        total == count_parameters(gpt2.config) == 124_439_808,
    )

    model = GPT(_TINY).eval()
    V, T = _TINY.vocab_size, _TINY.block_size
    idx, targets = torch.randint(0, V, (2, 8, T))
    with torch.no_grad():
        logits, _ = model(idx)
        _, loss = model(idx, targets)
        changed = idx.clone()
        changed[:, T // 2 :] = (changed[:, T // 2 :] + 1) % V
        moved = (model(changed)[0] - logits).abs().amax(dim=(0, 2))
    claims.show(
        f"a model of {count_parameters(_TINY):,} parameters: ids {tuple(idx.shape)} -> logits "
        f"{tuple(logits.shape)}, all finite",
        logits.shape == (8, T, V) and bool(logits.isfinite().all()),
    )
    claims.show(
        f"fresh, it knows nothing: loss {loss:.3f} on random text, and ln {V} = {math.log(V):.3f}",
        abs(loss.item() - math.log(V)) < 0.1,
    )
    claims.show(
        f"no position sees the future: new tokens from {T // 2} on move the logits before by "
        f"{moved[: T // 2].max():.2g}, those after by {moved[T // 2 :].max():.2g}",
        not moved[: T // 2].any() and bool(moved[T // 2 :].all()),
    )
    untied = GPTConfig(tie=False)
    saved = count_parameters(untied) - count_parameters(gpt2.config)
    claims.show(
        f"the output head is the token embedding, the same tensor: GPT-2 small saves {saved:,}",
        model.head_weight is model.wte.weight and saved == 50257 * 768,
    )
    claims.end()
