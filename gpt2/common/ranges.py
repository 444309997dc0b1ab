"""The range of every number that a command or a model is given, and what 0 means where it is one.

A name means the same in every command, so each stands here once, without the dashes.
"""

import dataclasses
import reprlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_IDS = 1 << 24  # tokens of a vocabulary, positions, widths: far beyond any model
_MANY = sys.maxsize


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`; NaN is in no range.

    Attributes:
        low, high: the ends; `high` is beyond what has a meaning, so that a damaged file cannot ask
            for memory without end and arithmetic cannot overflow.
        above, below: True where the end itself is left out.
        zero: what 0 means; empty where it is a number like others, or none.
    """

    low: float
    high: float
    above: bool = False
    below: bool = False
    zero: str = ""

    def __contains__(self, value: float) -> bool:
        from_low = value > self.low if self.above else value >= self.low
        return from_low and (value < self.high if self.below else value <= self.high)

    def describe(self, value: float) -> str:
        """Say in words what a value outside of it must be."""
        low = f"{'above' if self.above else 'at least'} {self.low:,}"
        high = f"{'below' if self.below else 'at most'} {self.high:,}"
        ends = high if value > self.high else low
        zero = f" (0: {self.zero})" if self.zero else ""
        return (f"{low} and {high}" if self.high <= 1 else ends) + zero


_REAL = 1e30  # its product with any other such number is a finite float64
_count = Range(1, _MANY)

RANGES: Mapping[str, Range] = {
    # the model
    "n_layer": Range(1, 1 << 12),
    "n_head": Range(1, 1 << 12),
    "n_embd": Range(1, 1 << 20),
    "n_inner": Range(1, _IDS),
    "block_size": Range(1, _IDS),
    "seq_len": Range(1, _IDS),
    "window": _count,
    "dropout": Range(0, 1, below=True, zero="no dropout"),
    # the length and the pace of a run
    "steps": _count,
    "tokens": _count,
    "extended_at": Range(0, _MANY, zero="never"),
    "epochs": Range(0, _REAL, above=True),
    "batch_size": _count,
    "grad_accum": _count,
    "eval_every": _count,
    "eval_tokens": _count,
    "log_every": _count,
    "checkpoint_every": _count,
    "keep": _count,
    "sample_every": Range(0, _MANY, zero="never"),
    "check_kernels": Range(0, _MANY, zero="never"),
    # optimisation
    "lr": Range(0, _REAL, above=True),
    "min_lr": Range(0, _REAL, zero="the rate falls to nothing"),
    "warmup_steps": Range(0, _MANY, zero="no warm-up"),
    "weight_decay": Range(0, _REAL, zero="no decay"),
    "beta1": Range(0, 1, below=True, zero="no momentum"),
    "beta2": Range(0, 1, below=True, zero="the last gradient alone"),
    "clip": Range(0, _REAL, zero="no clipping"),
    "max_skipped": _count,
    "spike_sigma": Range(0, _REAL, zero="no loss is a spike"),
    # generation
    "temperature": Range(0, sys.float_info.max, zero="greedy"),
    "top_k": _count,
    "top_p": Range(0, 1, above=True),
    "min_p": Range(0, 1, above=True),
    "repetition_penalty": Range(1e-30, _REAL),  # a logit divided by it is a finite float32
    "max_tokens": _count,
    "sample_tokens": _count,
    "samples": _count,
    "seed": Range(0, _MANY),
    # the other tools
    "stride": _count,
    "limit": _count,
    "num_fewshot": Range(0, _MANY, zero="no examples"),
    "prompts": _count,
    "prompt_tokens": _count,
    "copy_tokens": Range(0, _MANY, zero="no search for copies"),
    "port": Range(1, 65535),
    "tasks": Range(1, 1 << 20),
    "seconds": Range(0, _REAL, above=True),
    "minutes": Range(0, _REAL, above=True),
    "threshold": Range(0, _REAL, above=True),
    # Of the tokenizer to train: the 256 bytes, <|endoftext|>, merges. A model's own may be smaller.
    "vocab_size": Range(257, _IDS),
    "model_vocab_size": Range(1, _IDS),
    "end_of_text": Range(0, _IDS, zero="a document begins at token 0"),
}


def check_number(name: str, value: float, shown: str | None = None) -> None:
    """Check a number against `RANGES`.

    Raises:
        ValueError: it is outside; names it as `shown`, or as a command's option.
    """
    if value not in RANGES[name]:
        shown, right = shown or "--" + name.replace("_", "-"), RANGES[name].describe(value)
        raise ValueError(f"{shown} must be {right}, got {reprlib.repr(value)}")


def check_numbers(options: Any) -> None:
    """Check every number of a dataclass of options, those in tuples too; None is left open.

    Raises:
        ValueError: one is outside its range.
    """
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, (int, float)) and not isinstance(one, bool):
                check_number(field.name, one)
