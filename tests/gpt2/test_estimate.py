"""Cost of a training step: FLOPs by both conventions, memory by item."""

import pytest
import torch

from gpt2.config import PRESETS, GPTConfig
from gpt2.estimate import (
    flops_per_token,
    flops_per_token_nanogpt,
    human_bytes,
    peak_flops,
    training_memory,
)


@pytest.mark.parametrize(
    ("preset", "exact", "nanogpt"),
    [
        ("gpt2", 0.798, 0.855),
        ("gpt2-medium", 2.272, 2.425),
        ("gpt2-large", 4.917, 5.203),
        ("gpt2-xl", 9.803, 10.280),
    ],
)
def test_gflops_per_token_are_those_published_for_gpt2(preset, exact, nanogpt):
    config = PRESETS[preset]
    assert flops_per_token(config, 1024) / 1e9 == pytest.approx(exact, rel=1e-3)
    assert flops_per_token_nanogpt(config, 1024) / 1e9 == pytest.approx(nanogpt, rel=1e-3)


def test_a_window_saves_attention_flops_only():
    full, narrow = GPTConfig(), GPTConfig(window=64)
    saved = flops_per_token(full, 1024) - flops_per_token(narrow, 1024)
    seen = sum(min(i + 1, 64) for i in range(1024)) / 1024
    assert saved == pytest.approx(12 * 12 * 768 * (1025 / 2 - seen))


def test_memory_grows_with_what_it_should():
    def estimate(batch_size=4, dtype=torch.float32, **options):
        config = GPTConfig(**options)
        return training_memory(config, batch_size=batch_size, seq_len=1024, dtype=dtype)

    base, twice = estimate(), estimate(batch_size=8)
    assert twice.activations == 2 * base.activations
    assert twice.weights == base.weights == 4 * 124_439_808
    assert base.optimizer == 2 * base.weights
    assert estimate(attn="naive").activations > 2 * base.activations
    assert estimate(dtype=torch.bfloat16).activations < base.activations
    assert base.total == sum(vars(base).values())
    assert "total" in str(base)


def test_the_peak_is_known_for_gpus_only():
    assert peak_flops(torch.device("cpu")) is None


def test_bytes_are_written_for_people():
    assert [human_bytes(n) for n in (5, 2048, 3 << 20, 5 << 30)] == [
        "5 B",
        "2 KiB",
        "3 MiB",
        "5.00 GiB",
    ]
