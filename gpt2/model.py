"""GPT: a decoder-only Transformer, from token ids to the next token's logits.

    x = embed(idx) + positions                                                      (B, T, C)
    pre-norm  (GPT-2):         x = x + attention(norm(x));  x = x + mlp(norm(x));  last norm(x)
    post-norm (Vaswani 2017):  x = norm(x + attention(x));  x = norm(x + mlp(x))
    logits = x W_head^T                                                             (B, T, V)

Parameters carry the names of GPT-2's checkpoints (wte, wpe, h.0.attn.c_attn, ...).
Axes: B batch, T time, C channels, H heads, D = C/H head width, V vocabulary.
Source: Radford et al. 2019; tied head: Press and Wolf 2017, arXiv:1608.05859.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gpt2.attention import BACKENDS, attend_past, attend_past_triton, triton
from gpt2.cache import Chunk, KVCache
from gpt2.config import GPTConfig
from gpt2.layers import (
    GELU,
    Linear,
    Norm,
    SwiGLU,
    build_mlp,
    build_norm,
    create_sinusoidal_positions,
    linear,
)
from gpt2.loss import linear_cross_entropy
from gpt2.next_token import CompiledNextToken, Reserved
from kernels.documents import document_bounds


class MultiHeadAttention(nn.Module):
    """H attentions side by side on D-wide slices of the channels, and a projection that mixes them.

    With `chunk` the tokens follow those of a cache, which takes in their keys and values.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.n_head = config.n_head
        self.window = config.window
        self.dropout = config.dropout
        self.attend = BACKENDS[config.attn]
        self.largest: Tensor | None = None  # (H,) logits, see `GPT.watch_logits`
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(  # (B, T, C) -> (B, T, C)
        self, x: Tensor, chunk: Chunk | Reserved | None = None, documents: Tensor | None = None
    ) -> Tensor:
        B, T, C = x.shape
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)
        past = None if chunk is None else chunk.append(self, qkv[:, :, 1:])
        if chunk is None or past is None:
            options: dict[str, Any] = {"window": self.window, "documents": documents}
            options["dropout_p"] = self.dropout if self.training else 0.0
            if self.training and self.largest is not None and self.attend is triton:
                options["largest"] = self.largest
            y = self.attend(qkv, **options)  # (B, T, H, D)
        elif self.attend is triton and T > 1 and chunk.last and not qkv.requires_grad:
            # It has no backward.
            y = attend_past_triton(qkv[:, :, 0], past[0], self.window)
        else:
            y = attend_past(qkv[:, :, 0], *past)
        return self.c_proj(y.reshape(B, T, C))


class TransformerLayer(nn.Module):
    """Attention, then the MLP, each in a residual branch with a norm before or after it.

    `forward` states the layer; `GPT` runs the same function as `forward_fused`.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.pre_norm = config.norm_position == "pre"
        self.ln_1 = build_norm(config)
        self.attn = MultiHeadAttention(config)
        self.ln_2 = build_norm(config)
        self.mlp = build_mlp(config)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C) -> (B, T, C)
        if self.pre_norm:
            x = x + self.drop(self.attn(self.ln_1(x)))
            return x + self.drop(self.mlp(self.ln_2(x)))
        x = self.ln_1(x + self.drop(self.attn(x)))
        return self.ln_2(x + self.drop(self.mlp(x)))

    def forward_fused(
        self,
        x: Tensor,
        branch: Tensor | None,
        chunk: Chunk | Reserved | None = None,
        documents: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute the same with each residual addition in one step with the norm after it.

        In pre-norm the last addition is left to the next layer's norm: the layer takes the stream x
        (B, T, C) and a branch (B, T, C) to add to it, or None, and returns such a pair.
        """
        if self.pre_norm:
            y, x = (self.ln_1(x), x) if branch is None else self.ln_1.add(x, branch)
            y, x = self.ln_2.add(x, self.drop(self.attn(y, chunk, documents)))
            return x, self.drop(self.mlp(y))
        x, _ = self.ln_1.add(x, self.drop(self.attn(x, chunk, documents)), x.dtype)
        x, _ = self.ln_2.add(x, self.drop(self.mlp(x)), x.dtype)
        return x, None


class GPT(nn.Module):
    """The whole model: `GPT(config)(idx, targets) -> (logits, loss)`."""

    positions: Tensor

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.padded_vocab_size, config.n_embd)
        if config.positions == "learned":
            self.wpe = nn.Embedding(config.block_size, config.n_embd)
        else:
            table = create_sinusoidal_positions(config.block_size, config.n_embd)
            self.register_buffer("positions", table, persistent=False)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(TransformerLayer(config) for _ in range(config.n_layer))
        if config.norm_position == "pre":  # post-norm layers already end in a norm
            self.ln_f = build_norm(config)
        if not config.tie:
            self.lm_head = Linear(config.n_embd, config.padded_vocab_size, bias=False)
        self._compiled: CompiledNextToken | None = None
        self.init_weights()

    def init_weights(self) -> None:
        """GPT-2's initialisation: N(0, 0.02), residual projections by 1/sqrt(2 n_layer) smaller."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 1:
                nn.init.ones_(parameter)  # norms
            elif name.endswith(("c_proj.weight", "w_down.weight")):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.n_layer))
            else:
                nn.init.normal_(parameter, std=0.02)
        with torch.no_grad():  # rows of the padded vocabulary are never read
            for weight in {self.wte.weight, self.head_weight}:
                weight[self.config.vocab_size :] = 0

    def use(self, **choices: str) -> None:
        """Compute with other kernels from now on.

        Args:
            choices: any of attn, norm_kernel, mlp_kernel, loss_kernel, as in `GPTConfig`.
        """
        self.config = dataclasses.replace(self.config, **choices)  # type: ignore[arg-type]
        for attention in self._attentions():
            attention.attend = BACKENDS[self.config.attn]
        for module in self.modules():
            if isinstance(module, Norm):
                module.kernel = self.config.norm_kernel
            elif isinstance(module, GELU | SwiGLU):
                module.kernel = self.config.mlp_kernel

    def compile_next_token(self) -> None:
        """Compute the next token of one text, on a CPU with a cache, by `torch.compile`."""
        self._compiled = CompiledNextToken()

    def watch_logits(self) -> None:
        """Keep the largest attention logit of each head in training; by our kernel alone."""
        for attention in self._attentions():
            attention.largest = torch.empty(self.config.n_head, device=self.wte.weight.device)
        self.largest_logits()

    def largest_logits(self) -> Tensor:
        """The largest attention logits (L, H) since this was last asked, in float32."""
        watched = [a.largest for a in self._attentions() if a.largest is not None]
        largest = torch.stack(watched)
        for heads in watched:
            heads.fill_(-math.inf)
        return largest

    def _attentions(self) -> list[MultiHeadAttention]:
        return [module for module in self.modules() if isinstance(module, MultiHeadAttention)]

    @property
    def head_weight(self) -> Tensor:  # (V padded, C)
        return self.wte.weight if self.config.tie else self.lm_head.weight

    def embed(  # (B, T) -> (B, T, C)
        self, idx: Tensor, chunk: Chunk | None = None, documents: Tensor | None = None
    ) -> Tensor:
        T, C = idx.shape[1], self.config.n_embd
        positions, end = (slice(T), T) if chunk is None else (chunk.positions, chunk.end)
        if self.config.restart_positions:
            if chunk is not None:
                assert chunk.begins is not None
                positions = torch.arange(end, device=idx.device)[positions] - chunk.begins
            else:
                assert documents is not None
                positions = torch.arange(T, device=idx.device) - documents[0]
        if self.config.positions == "learned":
            if end > self.config.block_size:
                raise ValueError(
                    f"{end} tokens do not fit the {self.config.block_size} learned positions: "
                    "shorten the input, or train with --positions sinusoidal"
                )
            return self.wte(idx) + self.wpe.weight[positions]
        if end > len(self.positions):  # at least doubled, so that decoding seldom comes here
            table = create_sinusoidal_positions(max(end, 2 * len(self.positions)), C)
            self.positions = table.to(self.positions)
        # Embeddings of size 0.02 would drown in sines of size 1 (Vaswani et al. 2017, section 3.4).
        return self.wte(idx) * math.sqrt(C) + self.positions[positions]

    def hidden(self, idx: Tensor, cache: KVCache | None = None) -> Tensor:  # (B, T) -> (B, T, C)
        """The output of the last layer, normalised: the input of the output head.

        Args:
            idx: token ids (B, T), int64; with a cache those that follow what it holds.
            cache: keys and values of earlier tokens; gets those of `idx` as well.
        """
        chunk = None if cache is None else cache.extend(idx)
        documents = None
        if self.config.end_of_text is not None and (chunk is None or not chunk.follows):
            documents = document_bounds(idx.eq(self.config.end_of_text))
        x, branch = self.drop(self.embed(idx, chunk, documents)), None
        recompute = self.config.recompute == "block" and torch.is_grad_enabled()
        for layer in self.h:
            assert isinstance(layer, TransformerLayer)
            if self._compiled and chunk and chunk.follows and idx.numel() == 1:
                x, branch = self._compiled.layer(layer, x, branch, chunk)
            elif recompute:  # Chen et al. 2016, arXiv:1604.06174
                x, branch = checkpoint(
                    layer.forward_fused, x, branch, chunk, documents, use_reentrant=False
                )
            else:
                x, branch = layer.forward_fused(x, branch, chunk, documents)
        return x if branch is None else self.ln_f.add(x, branch)[0]

    def logits(self, x: Tensor) -> Tensor:  # (..., C) -> (..., V)
        return linear(x, self.head_weight[: self.config.vocab_size])

    def next_logits(
        self, idx: Tensor, cache: KVCache | None = None, lengths: Sequence[int] | None = None
    ) -> Tensor:
        """Logits (B, V) of the token that follows each row.

        Args:
            idx: token ids (B, T), int64; with a cache those that follow what it holds.
            cache: keys and values of earlier tokens; gets those of `idx` as well.
            lengths: how many tokens of each row count, where rows were filled up at their ends.
        """
        x = self.hidden(idx, cache)
        if lengths is None:
            last = x[:, -1]
        else:
            if cache is not None:
                cache.forget([idx.shape[1] - length for length in lengths])
            ends = torch.tensor(lengths, device=idx.device) - 1
            last = x[torch.arange(len(x), device=idx.device), ends]
        # With the rows of the padded vocabulary the matrix divides into blocks.
        head = self._compiled.head if self._compiled and idx.numel() == 1 else linear
        return head(last, self.head_weight)[:, : self.config.vocab_size]

    def forward(
        self, idx: Tensor, targets: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Logits of every position, or with targets the mean loss (the logits then never exist).

        Args:
            idx: token ids (B, T), int64.
            targets: the token after each position (B, T), int64; -100 where there is none.

        Returns:
            (logits (B, T, V), None), or (None, loss), a float32 scalar in nats per token.
        """
        x = self.hidden(idx)
        if targets is None:
            return self.logits(x), None
        return None, linear_cross_entropy(
            x.flatten(0, 1),
            self.head_weight,
            targets.flatten(),
            vocab_size=self.config.vocab_size,
            kernel=self.config.loss_kernel,
        )


def count_parameters(config: GPTConfig) -> int:
    """Parameters of the model, the rows of the padded vocabulary left out."""
    with torch.device("meta"):
        model = GPT(dataclasses.replace(config, n_layer=1))
    total = sum(p.numel() for p in model.parameters())
    total += (config.n_layer - 1) * sum(p.numel() for p in model.h[0].parameters())
    padding = (config.padded_vocab_size - config.vocab_size) * config.n_embd
    return total - padding * (1 if config.tie else 2)


def _self_check() -> None:
    """Print and check the parameters of GPT-2, the loss of a fresh model, and that it is causal."""
    torch.manual_seed(0)
    total = count_parameters(GPTConfig())
    print(f"GPT-2 small: {total:,} parameters, {50257 * 768:,} of them embedding and output head")
    assert total == 124_439_808
    model = GPT(GPTConfig(n_layer=2, n_head=4, n_embd=64, vocab_size=1000, block_size=64)).eval()
    idx, targets = torch.randint(1000, (2, 8, 64))
    later = idx.clone()
    later[:, 32:] = (later[:, 32:] + 1) % 1000
    with torch.no_grad():
        _, loss = model(idx, targets)
        moved = (model.logits(model.hidden(later)) - model.logits(model.hidden(idx))).abs()
    assert loss is not None
    print(f"fresh, it knows nothing: loss {loss:.3f}, ln 1000 = {math.log(1000):.3f}")
    assert abs(loss.item() - math.log(1000)) < 0.1
    before, after = moved[:, :32].max(), moved[:, 32:].max()
    print(f"new tokens from 32 on move the logits before by {before:.2g}, after by {after:.2g}")
    assert before == 0 < after


if __name__ == "__main__":
    _self_check()
