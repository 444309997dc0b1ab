"""Configuration: the model (`GPTConfig`), and the run as asked (`TrainConfig`) and as settled.

On the command line None leaves a setting open; `settle` fills it in from the preset, so that code
which trains sees `Settings` and no open ones. An option that model and run share, such as `norm`,
is declared once, in `ModelOptions`.
"""

import dataclasses
import sys
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from tyro.conf import Suppress

from gpt2.common.ranges import check_number

Norm = Literal["layernorm", "quicknorm"]
NormPosition = Literal["pre", "post"]
Mlp = Literal["gelu", "swiglu"]
Positions = Literal["learned", "sinusoidal"]
Attend = Literal["everything", "within-documents"]
Tracker = Literal["tensorboard", "wandb", "trackio"]
TokenType = Literal["uint16", "uint32"]
Optimizer = Literal["adamw", "muon"]
Kernel = Literal["torch", "triton"]
Recompute = Literal["none", "block"]
# What computes a model on every machine; all other choices give the same function.
PORTABLE: dict[str, Any] = {
    "attn": "sdpa",
    "norm_kernel": "torch",
    "mlp_kernel": "torch",
    "loss_kernel": "torch",
}


def _compile_pays() -> bool:
    """By default a GPU's training is compiled; on a CPU the compiler takes longer than it saves."""
    import torch  # here, not above: preparing data does without

    return torch.cuda.is_available() and sys.platform == "linux"


# Rows of the embedding are padded to a multiple of this, so that products with it are aligned.
VOCAB_MULTIPLE = 128


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The options of a model besides its size; the defaults are GPT-2's (Radford et al. 2019)."""

    # --- model ---
    norm: Norm = "layernorm"
    """layernorm, or quicknorm (= RMSNorm)."""
    norm_position: NormPosition = "pre"
    """Norm before each sub-layer (pre, GPT-2), or after its residual sum (post, Vaswani 2017)."""
    mlp: Mlp = "gelu"
    """gelu (GPT-2), or swiglu at the same number of parameters."""
    positions: Positions = "learned"
    """learned (GPT-2), or sinusoidal: no parameters, defined past the training length."""
    tie: bool = True
    """Share the embedding matrix with the output head, as GPT-2 does."""
    bias: bool = True
    """Biases in linear layers and LayerNorm, as GPT-2 has."""
    dropout: float = 0.0
    """Dropout rate of embeddings, attention weights and residual branches."""
    window: int | None = None
    """Sliding window: each position sees itself and the window-1 before it. None: all of them."""
    attend: Attend = "everything"
    """Where several documents stand in one sequence: everything before a position (GPT-2), or only
    its own document, which begins at <|endoftext|>."""
    restart_positions: bool = False
    """Count positions from the beginning of each document; with --attend within-documents."""
    n_inner: int | None = None
    """Hidden width of the MLP. None: 4 times n_embd for gelu, as many parameters for swiglu."""
    recompute: Recompute = "none"
    """block: a Transformer layer keeps only its inputs for the backward pass and computes the rest
    again there: far less memory, up to a third more computing, the same losses."""


@dataclass(frozen=True, kw_only=True)
class GPTConfig(ModelOptions):
    """Shape and options of a model. The defaults are GPT-2 small exactly."""

    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    vocab_size: int = 50257
    block_size: int = 1024
    end_of_text: int | None = None
    """The token at which a document begins, where attention stays within documents."""
    attn: str = "sdpa"
    norm_kernel: Kernel = "torch"
    mlp_kernel: Kernel = "torch"
    loss_kernel: Kernel = "torch"

    def __post_init__(self) -> None:
        for name in (
            "n_layer", "n_head", "n_embd", "block_size", "n_inner", "window", "dropout",
            "end_of_text",
        ):  # fmt: skip
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), name)
        check_number("model_vocab_size", self.vocab_size, "vocab_size")
        if self.n_embd % self.n_head:
            raise ValueError(
                f"n_embd={self.n_embd} cannot be split over n_head={self.n_head} heads: "
                "choose a width that is a multiple of the number of heads"
            )
        within = self.attend == "within-documents"
        if within != (self.end_of_text is not None):
            raise ValueError(
                "end_of_text, the token at which a document begins, belongs to "
                f"attend='within-documents': got {self.end_of_text} and {self.attend!r}"
            )
        if self.restart_positions and not within:
            raise ValueError(
                "restart_positions counts from the beginning of a document: give "
                "--attend within-documents as well, or leave it out"
            )
        for name, kind in get_type_hints(type(self)).items():
            choices, value = get_args(kind), getattr(self, name)
            if get_origin(kind) is Literal and value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def padded_vocab_size(self) -> int:
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    @property
    def mlp_width(self) -> int:
        """Hidden width of the MLP: 4C for GELU, and the same number of parameters for SwiGLU."""
        if self.n_inner is not None:
            return self.n_inner
        if self.mlp == "gelu":
            return 4 * self.n_embd
        multiple = 64 if self.n_embd >= 512 else 8  # tensor cores want round widths
        return round(8 * self.n_embd / 3 / multiple) * multiple


PRESETS: dict[str, GPTConfig] = {
    "demo": GPTConfig(n_layer=4, n_head=4, n_embd=192, vocab_size=4096, block_size=128),
    "mini": GPTConfig(n_layer=6, n_head=6, n_embd=384, vocab_size=32000, block_size=256),
    "gpt2": GPTConfig(),
    "gpt2-medium": GPTConfig(n_layer=24, n_head=16, n_embd=1024),
    "gpt2-large": GPTConfig(n_layer=36, n_head=20, n_embd=1280),
    "gpt2-xl": GPTConfig(n_layer=48, n_head=25, n_embd=1600),
}

# Settings of a run that belong to a size, used where the command line gives none. The learning rate
# is one for each optimizer where they were tuned apart; else Muon, whose updates have the size of
# AdamW's, takes AdamW's.
_GPT2_RUN: dict[str, Any] = {
    "vocab_size": 32000,
    "optimizer": "adamw",
    "steps": 20000,
    "batch_size": 16,
    "grad_accum": 8,
    "lr": 6e-4,
    "warmup_steps": 500,
    "eval_every": 500,
    "checkpoint_every": 500,
}
RUN_DEFAULTS: dict[str, dict[str, Any]] = {
    "demo": {
        "vocab_size": 4096,
        "steps": 600,
        "batch_size": 16,
        "grad_accum": 1,
        # On so short a run Muon comes as far in 200 steps as AdamW in 600.
        "optimizer": "muon",
        "lr": {"muon": 1e-2, "adamw": 3e-3},  # bench/results/cpu-epyc-2/learning-rates/demo.json
        "warmup_steps": 50,
        "eval_every": 100,
        "checkpoint_every": 200,
    },
    "mini": {
        "vocab_size": 32000,
        "optimizer": "adamw",
        "steps": 5000,
        "batch_size": 16,
        "grad_accum": 2,
        "lr": 1e-3,
        "warmup_steps": 200,
        "eval_every": 250,
        "checkpoint_every": 500,
    },
    "gpt2": _GPT2_RUN,
    "gpt2-medium": _GPT2_RUN | {"lr": 3e-4, "batch_size": 8, "grad_accum": 16},
    "gpt2-large": _GPT2_RUN | {"lr": 2.5e-4, "batch_size": 4, "grad_accum": 32},
    "gpt2-xl": _GPT2_RUN | {"lr": 2e-4, "batch_size": 2, "grad_accum": 64},
}


# Settings of a run that begins from trained weights: short and gentle, whatever its size.
FINE_TUNING: dict[str, Any] = {
    "steps": 1000,
    "batch_size": 8,
    "grad_accum": 4,
    "optimizer": "adamw",
    "lr": 5e-5,
    "warmup_steps": 100,
    "eval_every": 100,
    "checkpoint_every": 500,
}

# Where our kernels are interpreted a step takes seconds: minutes of it, whatever the size.
INTERPRETED: dict[str, Any] = {
    "steps": 50,
    "warmup_steps": 5,
    "eval_every": 25,
    "checkpoint_every": 25,
}


def decided_by_preset() -> dict[str, str]:
    """For the help of commands: the settings that the preset decides, each with its values."""
    settled = {name: vars(settle(TrainConfig(preset=name))) for name in PRESETS}
    decided = {}
    for name in (
        "vocab_size", "seq_len", "batch_size", "grad_accum", "optimizer", "n_layer", "n_head",
        "n_embd", "steps", "lr", "min_lr", "warmup_steps", "eval_every", "checkpoint_every",
    ):  # fmt: skip
        values = ", ".join(f"{preset} {settled[preset][name]}" for preset in PRESETS)
        decided[name] = f"by preset: {values}"
    decided["min_lr"] = "a tenth of --lr"
    decided["lr"] += "; demo with adamw " + str(RUN_DEFAULTS["demo"]["lr"]["adamw"])
    return decided


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a single run and a comparison of sizes are asked in the same way.

    None leaves a setting open, see `settle`.
    """

    # --- text ---
    data: str = "python-docs"
    """python-docs (no download), tinystories, wikitext-2, openwebtext; or a .txt, .jsonl, .csv,
    .parquet or .arrow file (packed or not), one of token ids (.bin, .npy, .ds), a folder of them,
    or a pattern."""
    token_type: TokenType | None = None
    """Type of the ids in token files that do not say it, such as nanoGPT's .bin."""
    tokenizer: str | None = None
    """A tokenizer.json, a folder with GPT-2's encoder.json and vocab.bpe, or gpt2, which fetches
    these. None: train one; with token ids, the one beside them."""
    vocab_size: int | None = None
    """Size of the vocabulary to train, <|endoftext|> included. None: the preset's."""
    cache_dir: str = "data"
    """Where trained tokenizers and tokenised shards are kept and found again."""
    # --- optimisation ---
    seq_len: int | None = None
    """Tokens per sequence. None: the preset's context length."""
    batch_size: int | None = None
    """Sequences per micro-batch. None: the preset's."""
    grad_accum: int | None = None
    """Micro-batches per optimizer step; the gradient is that of the one large batch. None: the
    preset's."""
    optimizer: Optimizer | None = None
    """adamw, or muon for the hidden matrices with AdamW for the rest. None: the preset's."""
    seed: int = 1337
    """Seed of initialisation, batches, dropout and samples."""
    # --- machine ---
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Compute type, by autocast (fp16 with loss scaling). Weights and optimizer stay fp32."""
    compile: bool = field(default_factory=_compile_pays)
    """torch.compile the model."""
    # --- run folder ---
    sample_tokens: int = 60
    """Tokens of each sample."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(ModelOptions, RunOptions):
    """What is asked of a run. None leaves a setting open, see `settle`."""

    # --- model ---
    preset: str | None = None
    """demo, mini, gpt2, gpt2-medium, gpt2-large or gpt2-xl. None: demo on a CPU, mini on a GPU."""
    init_from: str | None = None
    """Begin from trained weights: gpt2, gpt2-medium, gpt2-large, gpt2-xl or owner/name on the
    Hugging Face hub, a folder in its GPT-2 format, a run folder (its best checkpoint), or demo, the
    model that ships. Shape and tokenizer come from there."""
    attn: str = "auto"
    """Attention: naive (masked matmul), sdpa (PyTorch), flash (FlashAttention-2), triton, another
    name in `gpt2.attention.BACKENDS`, or auto: the fastest here, measured once and kept."""
    n_layer: int | None = None
    """Number of Transformer layers. None: the preset's."""
    n_head: int | None = None
    """Number of attention heads. None: the preset's."""
    n_embd: int | None = None
    """Width of the residual stream. None: the preset's."""

    # --- kernels: they change how the model is computed, not what it is ---
    kernels: Literal["auto", "torch", "triton"] = "auto"
    """Norms, MLP activation and loss: torch (PyTorch's operators, loss in chunks) or triton (our
    fused kernels)."""
    norm_kernel: Kernel | None = None
    """torch or triton for the norms, with the residual additions before them. None: as --kernels.
    """
    mlp_kernel: Kernel | None = None
    """torch or triton for GELU (with its bias) or SwiGLU. None: as --kernels."""
    loss_kernel: Kernel | None = None
    """torch or triton for output head and loss. None: as --kernels."""

    # --- optimisation ---
    steps: int | None = None
    """Optimizer steps. None: the preset's."""
    epochs: float | None = None
    """Length of the run in passes over the training text, instead of --steps."""
    lr: float | None = None
    """Peak learning rate. None: the preset's for the optimizer."""
    min_lr: float | None = None
    """Learning rate at the end of the cosine. None: a tenth of --lr."""
    warmup_steps: int | None = None
    """Steps of linear warm-up. None: the preset's."""
    weight_decay: float = 0.1
    """Decoupled weight decay, on matrices only."""
    beta1: float = 0.9
    """AdamW's first moment decay."""
    beta2: float = 0.95
    """AdamW's second moment decay."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 turns clipping off."""
    max_skipped: int = 10
    """Stop after so many skipped steps in a row (a loss or gradient not finite, or a spike), or so
    many rollbacks."""
    on_spike: Literal["warn", "skip", "rollback"] = "warn"
    """When the loss jumps: a warning, or the step skipped, or back to the last checkpoint and on
    with the text after it (a skip, before the first checkpoint)."""
    spike_sigma: float = 6.0
    """A jump is so many standard deviations above the last 100 losses; 0: never."""
    check_kernels: int = 0
    """Every so many steps compare the gradients by each kernel with PyTorch's; 0: never."""

    # --- machine ---
    auto_batch: bool = False
    """When memory runs out, go on with smaller micro-batches and more of them a step."""
    parallel: Literal["ddp", "fsdp"] | None = None
    """Under torchrun: every process holds the whole model (ddp), or a part of it (fsdp). None: ddp.
    """

    # --- run folder ---
    out: str | None = None
    """Run folder. None: runs/<data>-<preset>; an existing run is never overwritten."""
    resume: str | None = None
    """Run folder to go on with, bit for bit; its configuration is used. With more --steps a
    finished run is extended: at the rate that it ended with, or with --lr from there on by another
    half cosine, to --min-lr."""
    extended_at: Annotated[int, Suppress] = 0
    """The step at which the run was extended, where its schedule begins; not an option."""
    eval_every: int | None = None
    """Steps between two measurements of the validation loss. None: the preset's."""
    eval_tokens: int = 200_000
    """Validation tokens scored at each measurement, the same ones each time."""
    log_every: int = 10
    """Steps between two lines of metrics.jsonl."""
    log_attention: bool = False
    """Write the largest attention logit of each head as well, max_logit/LAYER.HEAD: where one grows
    without bound, training becomes unstable. With --attn triton, whose kernel has them for nothing.
    """
    checkpoint_every: int | None = None
    """Steps between two checkpoints. None: the preset's."""
    keep: int = 3
    """Newest checkpoints to keep, besides the one with the best validation loss."""
    sample_every: int = 0
    """Every so many steps write samples to the run folder, as at the end; 0: never."""
    track: Tracker | None = None
    """Also give the numbers of metrics.jsonl to tensorboard, wandb (which stays offline, unless
    WANDB_MODE says otherwise) or trackio: extras of these names."""


def changed_options(config: TrainConfig) -> set[str]:
    """The names of the settings that differ from their defaults."""
    default = TrainConfig()
    return {name for name, value in vars(config).items() if value != getattr(default, name)}


@dataclass(frozen=True, kw_only=True)
class Settings(TrainConfig):
    """A run's settings as `settle` makes them: those of the preset are filled in.

    Of `steps` and `epochs` one is None, and `norm_kernel`, `mlp_kernel` and `loss_kernel` are None
    where they follow `kernels`.
    """

    # `field()` makes a setting required although it has a default in `TrainConfig`.
    vocab_size: int = field()
    preset: str = field()
    n_layer: int = field()
    n_head: int = field()
    n_embd: int = field()
    batch_size: int = field()
    seq_len: int = field()
    grad_accum: int = field()
    optimizer: Optimizer = field()
    lr: float = field()
    min_lr: float = field()
    warmup_steps: int = field()
    eval_every: int = field()
    checkpoint_every: int = field()

    @property
    def sequences_per_step(self) -> int:
        return self.batch_size * self.grad_accum


def settle(config: TrainConfig, default: str = "demo", *, interpreted: bool = False) -> Settings:
    """Fill in the settings that `config` leaves open, from its preset; settled ones stay.

    Args:
        config: as asked.
        default: the preset where none is named.
        interpreted: our kernels are interpreted: a run whose length is not asked for is short.

    Raises:
        ValueError: an unknown preset, or both --steps and --epochs.
    """
    preset = config.preset or default
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}: choose one of {', '.join(PRESETS)}")
    if config.steps is not None and config.epochs is not None:
        raise ValueError("--steps and --epochs both set the length of the run: give one of them")
    shape = PRESETS[preset]
    values: dict[str, Any] = {"preset": preset, "seq_len": shape.block_size}
    values |= {name: getattr(shape, name) for name in ("n_layer", "n_head", "n_embd")}
    values |= RUN_DEFAULTS[preset] if config.init_from is None else FINE_TUNING
    if config.epochs is not None:
        values["steps"] = None
    elif interpreted and config.steps is None:
        values |= INTERPRETED
    asked = {f.name: getattr(config, f.name) for f in dataclasses.fields(TrainConfig)}
    values = asked | {name: value for name, value in values.items() if asked[name] is None}
    if isinstance(values["lr"], dict):
        values["lr"] = values["lr"][values["optimizer"]]
    if values["min_lr"] is None:
        values["min_lr"] = values["lr"] / 10
    return Settings(**values)


def model_config(settings: Settings, vocab_size: int, end_of_text: int) -> GPTConfig:
    """The model of a run; its kernels are settled later, by `choose_machine`."""
    names = {f.name for f in dataclasses.fields(ModelOptions)} | {"n_layer", "n_head", "n_embd"}
    shape = {name: getattr(settings, name) for name in names}
    return GPTConfig(
        **shape,
        vocab_size=vocab_size,
        block_size=settings.seq_len,
        end_of_text=end_of_text if settings.attend == "within-documents" else None,
    )
