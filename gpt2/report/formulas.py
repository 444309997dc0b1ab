"""The equations of a model and its training, for the options that a run really uses.

Axes: T time, H heads, D head width, C channels, F feed-forward width, V vocabulary, L layers.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from gpt2.config import GPTConfig, TrainConfig
from gpt2.layers import LayerNorm, QuickNorm
from gpt2.report.text import Spans, rich, scientific


@dataclass(frozen=True)
class Formula:
    """A displayed equation in Typst's and in LaTeX's notation, introduced by `text`."""

    name: str
    text: Spans
    typst: str
    latex: str


def model_formulas(config: GPTConfig) -> list[Formula]:
    """What the model computes, from token ids to the distribution of the next token."""
    formulas = [_positions(config), _block(config), _attention(config)]
    if config.attn in ("flash", "triton"):
        formulas.append(_tiled_softmax(config))
    return [*formulas, _norm(config), _mlp(config), _head(config)]


def training_formulas(config: TrainConfig, steps: int) -> list[Formula]:
    """The optimizer's update and the learning rate of each step."""
    optimizer = [_muon(config)] if config.optimizer == "muon" else []
    return [*optimizer, _adamw(config), _schedule(config, steps)]


def sampling_formula() -> Formula:
    """The distribution that the sampling strategies draw from."""
    return Formula(
        "Decoding",
        rich(
            "Greedy decoding takes the token with the largest logit $z_i$. Sampling divides the "
            "logits by a temperature $tau|\\tau$ (1 if not said) and draws from a set $K$ of "
            "tokens: all of them, the $k$ most probable (top\u2011$k$, Fan et al. 2018), or the "
            "fewest that hold a probability of $P$ together (nucleus or top\u2011$p$, Holtzman et "
            "al. 2020)."
        ),
        'p(i) = "softmax"(z slash tau)_i, quad '
        'q(i) = cases(p(i) slash sum_(j in K) p(j) quad &"if" i in K, 0 &"otherwise")',
        r"p(i) = \mathrm{softmax}(z / \tau)_i, \quad q(i) = \begin{cases} p(i) / "
        r"\sum_{j \in K} p(j) & \text{if } i \in K \\ 0 & \text{otherwise} \end{cases}",
    )


def _positions(config: GPTConfig) -> Formula:
    if config.positions == "learned":
        return Formula(
            "Embedding",
            rich(
                "Token $i_t$ at position $t$ is embedded in $C$~=~{C} channels. The positions "
                "are learned: one vector for each of the {T} places, and no length beyond them.",
                C=config.n_embd,
                T=f"{config.block_size:,}",
            ),
            "x_t^((0)) = W_e [i_t] + W_p [t]",
            r"x_t^{(0)} = W_e[i_t] + W_p[t]",
        )
    return Formula(
        "Embedding",
        rich(
            "Token $i_t$ at position $t$ is embedded in $C$~=~{C} channels. The positions are "
            "sinusoids (Vaswani et al. 2017): no parameters, and defined for every $t$. The "
            "factor $sqrt(C)|\\sqrt{C}$ gives the embeddings, drawn with a deviation of 0.02, the "
            "size of the sines.",
            C=config.n_embd,
        ),
        "x_t^((0)) = sqrt(C) thin W_e [i_t] + p_t, quad "
        "p_(t, 2j) = sin(t slash 10000^(2j slash C)), quad "
        "p_(t, 2j+1) = cos(t slash 10000^(2j slash C))",
        r"x_t^{(0)} = \sqrt{C}\, W_e[i_t] + p_t, \quad p_{t,2j} = \sin(t / 10000^{2j/C}), \quad "
        r"p_{t,2j+1} = \cos(t / 10000^{2j/C})",
    )


def _block(config: GPTConfig) -> Formula:
    if config.norm_position == "pre":
        return Formula(
            "Layer",
            rich(
                "Each of the $L$~=~{L} layers adds the output of attention and then of a "
                "feed-forward network to the residual stream, with the norm before each "
                "sub-layer (pre-norm); one more norm follows the last layer.",
                L=config.n_layer,
            ),
            'y = x + "Attn"("Norm"(x)), quad x\' = y + "MLP"("Norm"(y))',
            r"y = x + \mathrm{Attn}(\mathrm{Norm}(x)), \quad "
            r"x' = y + \mathrm{MLP}(\mathrm{Norm}(y))",
        )
    return Formula(
        "Layer",
        rich(
            "Each of the $L$~=~{L} layers adds the output of attention and then of a feed-forward "
            "network to its input, and normalises after each sum (post-norm, Vaswani et al. 2017).",
            L=config.n_layer,
        ),
        'y = "Norm"(x + "Attn"(x)), quad x\' = "Norm"(y + "MLP"(y))',
        r"y = \mathrm{Norm}(x + \mathrm{Attn}(x)), \quad x' = \mathrm{Norm}(y + \mathrm{MLP}(y))",
    )


def _attention(config: GPTConfig) -> Formula:
    lower = "" if config.window is None else f"i - {config.window} < "
    text = (
        "Each of the $H$~=~{H} heads has queries, keys and values of width "
        "$D = C slash H|D = C/H$~=~{D}, all linear in $x$. A sum of $D$ products of independent "
        "entries of variance 1 has variance $D$, hence the division. The mask $M$ hides the future"
    )
    text += "." if config.window is None else ", and all but the last {window} positions."
    return Formula(
        "Causal attention",
        rich(text, H=config.n_head, D=config.head_dim, window=config.window),
        'A_h = "softmax"((Q_h K_h^top) / sqrt(D) + M) V_h, quad '
        f'M_(i j) = cases(0 &"if" {lower}j <= i, -infinity quad &"otherwise") quad '
        '"Attn"(x) = [A_1; ...; A_H] W_O',
        r"A_h = \mathrm{softmax}\left(\frac{Q_h K_h^\top}{\sqrt{D}} + M\right) V_h, \quad "
        rf"M_{{ij}} = \begin{{cases}} 0 & \text{{if }} {lower}j \le i \\ -\infty & "
        r"\text{otherwise} \end{cases} \quad \mathrm{Attn}(x) = [A_1; \dots; A_H] W_O",
    )


def _tiled_softmax(config: GPTConfig) -> Formula:
    kernel = "our Triton kernel" if config.attn == "triton" else "FlashAttention-2"
    return Formula(
        "Fused attention",
        rich(
            "{kernel} (after Dao 2023) never stores the scores $S = Q K^top \\/ sqrt(D) + M"
            "|S = QK^\\top/\\sqrt{D} + M$, so that memory grows with $T$ and not with "
            "$T^2$. It walks over tiles $S_b$ of keys with the largest score $m$, the sum $ell|"
            "\\ell$ and the output $o$ of a row so far, and divides at the end:",
            kernel=kernel[0].upper() + kernel[1:],
        ),
        "m' = max(m, max_j S_(b j)), quad ell' = e^(m - m') ell + sum_j e^(S_(b j) - m'), quad "
        "o' = e^(m - m') o + sum_j e^(S_(b j) - m') v_j, quad A = o slash ell",
        r"m' = \max(m, \max_j S_{bj}), \quad \ell' = e^{m-m'} \ell + \sum_j e^{S_{bj}-m'}, \quad "
        r"o' = e^{m-m'} o + \sum_j e^{S_{bj}-m'} v_j, \quad A = o / \ell",
    )


def _norm(config: GPTConfig) -> Formula:
    if config.norm == "quicknorm":
        return Formula(
            "QuickNorm",
            rich(
                "The norm scales by the root mean square of the channels (RMSNorm, Zhang and "
                "Sennrich 2019): no centring, no shift, one reduction; "
                "$epsilon|\\epsilon$~=~{eps}.",
                eps=scientific(_default(QuickNorm, "eps")),
            ),
            '"Norm"(x) = x / sqrt(1/C sum_(c=1)^C x_c^2 + epsilon) dot.o g',
            r"\mathrm{Norm}(x) = \frac{x}{\sqrt{\frac{1}{C} \sum_{c=1}^{C} x_c^2 + \epsilon}} "
            r"\odot g",
        )
    shift = " + b" if config.bias else ""
    after = "scale $g$ and shift $b$" if config.bias else "scale $g$"
    return Formula(
        "LayerNorm",
        rich(
            "The norm centres the channels and divides by their deviation (Ba et al. 2016), then "
            f"applies a learned {after}; $epsilon|\\epsilon$~=~{{eps}}.",
            eps=scientific(_default(LayerNorm, "eps")),
        ),
        f'"Norm"(x) = (x - mu) / sqrt(sigma^2 + epsilon) dot.o g{shift}, quad '
        "mu = 1/C sum_(c=1)^C x_c, quad sigma^2 = 1/C sum_(c=1)^C (x_c - mu)^2",
        rf"\mathrm{{Norm}}(x) = \frac{{x - \mu}}{{\sqrt{{\sigma^2 + \epsilon}}}} \odot g"
        rf"{shift}, \quad \mu = \frac{{1}}{{C}} \sum_{{c=1}}^{{C}} x_c, \quad "
        r"\sigma^2 = \frac{1}{C} \sum_{c=1}^{C} (x_c - \mu)^2",
    )


def _mlp(config: GPTConfig) -> Formula:
    if config.mlp == "swiglu":
        return Formula(
            "SwiGLU",
            rich(
                "The feed-forward network is gated (Shazeer 2020). It has three matrices, so its "
                "width $F$~=~{F} is about two thirds of $4C$, which gives the parameters of "
                "GPT-2's two.",
                F=f"{config.mlp_width:,}",
            ),
            '"MLP"(x) = W_"down" ("silu"(W_"gate" x) dot.o W_"up" x), quad '
            '"silu"(u) = u / (1 + e^(-u))',
            r"\mathrm{MLP}(x) = W_{\mathrm{down}} (\mathrm{silu}(W_{\mathrm{gate}} x) \odot "
            r"W_{\mathrm{up}} x), \quad \mathrm{silu}(u) = \frac{u}{1 + e^{-u}}",
        )
    return Formula(
        "GELU",
        rich(
            "The feed-forward network has one hidden layer of width $F$~=~{F} with GPT-2's "
            "activation, the tanh form of GELU (Hendrycks and Gimpel 2016).",
            F=f"{config.mlp_width:,}",
        ),
        '"MLP"(x) = W_"proj" thin "gelu"(W_"fc" x), quad "gelu"(u) = '
        "u / 2 (1 + tanh(sqrt(2 slash pi) (u + 0.044715 u^3)))",
        r"\mathrm{MLP}(x) = W_{\mathrm{proj}}\, \mathrm{gelu}(W_{\mathrm{fc}} x), \quad "
        r"\mathrm{gelu}(u) = \frac{u}{2} \left(1 + \tanh\left(\sqrt{2/\pi}\, "
        r"(u + 0.044715 u^3)\right)\right)",
    )


def _head(config: GPTConfig) -> Formula:
    if config.tie:
        text = (
            "The output head is the embedding matrix again (Press and Wolf 2017). The loss is the "
            "mean cross-entropy of the next token over $N$ targets; perplexity is its exponential."
        )
        head = "W_e"
    else:
        text = (
            "The output head $W_h$ has its own weights. The loss is the mean cross-entropy of the "
            "next token over $N$ targets; perplexity is its exponential."
        )
        head = "W_h"
    text += " Bits per byte divide the same sum by the $U$ bytes of the text."
    return Formula(
        "Head and loss",
        rich(text),
        f'p(dot | i_(<= t)) = "softmax"({head} thin x_t), quad '
        "cal(L) = -1/N sum_(t=1)^N log p(i_(t+1) | i_(<= t)), quad "
        '"PPL" = e^cal(L), quad "BPB" = (N cal(L)) / (U ln 2)',
        rf"p(\cdot \mid i_{{\le t}}) = \mathrm{{softmax}}({head}\, x_t), \quad "
        r"\mathcal{L} = -\frac{1}{N} \sum_{t=1}^{N} \log p(i_{t+1} \mid i_{\le t}), \quad "
        r"\mathrm{PPL} = e^{\mathcal{L}}, \quad "
        r"\mathrm{BPB} = \frac{N \mathcal{L}}{U \ln 2}",
    )


def _adamw(config: TrainConfig) -> Formula:
    which = "All parameters are" if config.optimizer == "adamw" else "All others are"
    return Formula(
        "AdamW",
        rich(
            "{which} trained by AdamW (Loshchilov and Hutter 2019) on the gradient $g$, "
            "with $beta_1|\\beta_1$~=~{beta1:g}, $beta_2|\\beta_2$~=~{beta2:g} and a decay "
            "$lambda|\\lambda$~=~{decay:g} of matrices only; biases and norms do not decay.",
            which=which,
            beta1=config.beta1,
            beta2=config.beta2,
            decay=config.weight_decay,
        ),
        "m arrow.l beta_1 m + (1 - beta_1) g, quad v arrow.l beta_2 v + (1 - beta_2) g^2, quad "
        "theta arrow.l (1 - eta lambda) theta - eta thin "
        "(m slash (1 - beta_1^(s+1))) / (sqrt(v slash (1 - beta_2^(s+1))) + epsilon)",
        r"m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad v \leftarrow \beta_2 v + (1 - \beta_2) "
        r"g^2, \quad \theta \leftarrow (1 - \eta\lambda)\theta - \eta\, "
        r"\frac{m / (1 - \beta_1^{s+1})}{\sqrt{v / (1 - \beta_2^{s+1})} + \epsilon}",
    )


def _muon(config: TrainConfig) -> Formula:
    return Formula(
        "Muon",
        rich(
            "The matrices inside the layers are trained by Muon (Jordan et al. 2024): a momentum "
            "$mu|\\mu$~=~{momentum:g}, whose singular values {ns_steps} Newton-Schulz steps bring "
            "near 1, with updates of the size of AdamW's for a matrix of $m times n|m \\times n$.",
            momentum=_default(torch.optim.Muon, "momentum"),
            ns_steps=_default(torch.optim.Muon, "ns_steps"),
        ),
        'B arrow.l mu B + (1 - mu) G, quad O = op("NS")(mu B + (1 - mu) G), quad '
        "W arrow.l (1 - eta lambda) W - 0.2 thin eta sqrt(max(m, n)) thin O",
        r"B \leftarrow \mu B + (1 - \mu) G, \quad O = \mathrm{NS}(\mu B + (1 - \mu) G), \quad "
        r"W \leftarrow (1 - \eta\lambda) W - 0.2\, \eta \sqrt{\max(m, n)}\, O",
    )


def _schedule(config: TrainConfig, steps: int) -> Formula:
    assert config.lr is not None
    assert config.min_lr is not None
    return Formula(
        "Schedule",
        rich(
            "Over $S$~=~{steps:,} steps the learning rate rises linearly for $S_w$~=~{warmup:,} "
            "steps to $eta_max|\\eta_{\\max}$~=~{lr:g} and follows half a cosine down to "
            "$eta_min|\\eta_{\\min}$~=~{min_lr:g} (Loshchilov and Hutter 2017).",
            steps=steps,
            warmup=config.warmup_steps or 0,
            lr=config.lr,
            min_lr=config.min_lr,
        ),
        'eta_s = cases(eta_max thin (s + 1) slash S_w &"if" s < S_w, '
        "eta_min + 1/2 (eta_max - eta_min) (1 + cos(pi thin (s - S_w + 1) / (S - S_w))) quad "
        '&"otherwise")',
        r"\eta_s = \begin{cases} \eta_{\max} (s + 1) / S_w & \text{if } s < S_w \\ \eta_{\min} + "
        r"\frac{1}{2} (\eta_{\max} - \eta_{\min}) \left(1 + "
        r"\cos\left(\pi \frac{s - S_w + 1}{S - S_w}\right)\right) & \text{otherwise} \end{cases}",
    )


def _default(function: Callable[..., Any], argument: str) -> Any:
    return inspect.signature(function).parameters[argument].default
