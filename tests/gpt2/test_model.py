"""GPT-2's sizes, its forward pass, every combination of options."""

import pytest
import torch

from gpt2.config import PRESETS, GPTConfig
from gpt2.generate.decoding import generate
from gpt2.model import GPT, count_parameters
from tests.gpt2.stand_ins import every_combination, run_forked

TINY = GPTConfig(n_layer=2, n_head=2, n_embd=16, vocab_size=50, block_size=12)


def _tiny(**options) -> GPT:
    return GPT(GPTConfig(**{**vars(TINY), **options}))


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ],
)
def test_presets_have_exactly_gpt2s_parameters(preset, parameters):
    assert count_parameters(PRESETS[preset]) == parameters


def test_options_change_the_number_of_parameters():
    for options, more in (({"tie": False}, 50 * 16), ({"positions": "sinusoidal"}, -12 * 16)):
        assert count_parameters(_tiny(**options).config) - count_parameters(TINY) == more


@every_combination(
    norm=["layernorm", "quicknorm"],
    norm_position=["pre", "post"],
    mlp=["gelu", "swiglu"],
    positions=["learned", "sinusoidal"],
    tie=[True, False],
)
def test_every_combination_of_options_learns(options):
    _assert_learns(_tiny(**options))


def _assert_learns(model: GPT) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    x = torch.randint(0, 50, (4, 12))
    losses = []
    for _ in range(20):
        _, loss = model(x, x.roll(-1, dims=1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"window": 3}, {"dropout": 0.2}], ids=str)
def test_further_options_learn_too(options):
    model = _tiny(**options)
    _assert_learns(model)
    assert all(p.grad is not None for p in model.parameters())
    assert ("h.0.attn.c_attn.bias" in dict(model.named_parameters())) == options.get("bias", True)


@pytest.mark.parametrize("options", [{}, {"norm": "quicknorm", "mlp": "swiglu", "tie": False}])
def test_gradients_are_those_of_finite_differences(options):
    model = _tiny(n_layer=1, **options).double()
    x, y = torch.randint(0, 50, (2, 2, 5))
    _, loss = model(x, y)
    loss.backward()
    for name, parameter in model.named_parameters():
        direction = torch.randn_like(parameter)
        if name in ("wte.weight", "lm_head.weight"):
            direction[50:] = 0  # padding
        step = 1e-6
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(direction, alpha=sign * step)
                values.append(model(x, y)[1].item())
                parameter.add_(direction, alpha=-sign * step)
        slope = (values[0] - values[1]) / (2 * step)
        assert slope == pytest.approx((parameter.grad * direction).sum().item(), rel=1e-5, abs=1e-8)


def test_the_padding_of_the_vocabulary_is_invisible():
    model = _tiny()
    assert len(model.wte.weight) == 128
    logits, _ = model(torch.zeros(1, 3, dtype=torch.long))
    assert logits.shape == (1, 3, 50)
    with torch.no_grad():
        model.wte.weight[50:] = 1e3  # were it read, it would win everywhere
    ids = generate(model, torch.zeros(2, 1, dtype=torch.long), 10)
    assert ids.max() < 50


def test_initialisation_is_gpt2s():
    model = GPT(GPTConfig(n_layer=8, n_head=2, n_embd=256, vocab_size=500, block_size=64))
    assert model.wte.weight[:500].std().item() == pytest.approx(0.02, rel=0.02)
    assert model.h[0].attn.c_attn.weight.std().item() == pytest.approx(0.02, rel=0.02)
    for projection in (model.h[3].attn.c_proj, model.h[3].mlp.c_proj):
        assert projection.weight.std().item() == pytest.approx(0.02 / 4, rel=0.02)
        assert not projection.bias.any()
    assert model.h[0].ln_1.eps == 1e-5


def test_learned_positions_end_and_sinusoidal_ones_go_on():
    x = torch.randint(0, 50, (1, 13))
    with pytest.raises(ValueError, match="13 tokens do not fit the 12 learned positions"):
        _tiny()(x)
    longer = _tiny(positions="sinusoidal")(x)[0]
    assert longer.shape == (1, 13, 50)
    assert longer.isfinite().all()


@pytest.mark.parametrize(
    "options",
    [{}, {"dropout": 0.2}, {"norm_position": "post", "mlp": "swiglu", "norm": "quicknorm"}],
)
def test_recomputed_layers_give_the_same_bits_and_run_twice(options):
    x = torch.randint(0, 50, (2, 12))
    results, calls = [], []
    for recompute in ("none", "block"):
        torch.manual_seed(0)
        model = _tiny(recompute=recompute, **options)
        model.h[0].attn.register_forward_hook(lambda *_: calls.append(1))
        _, loss = model(x, x)
        loss.backward()
        results.append([loss.detach(), torch.rand(()), *(p.grad for p in model.parameters())])
        with torch.no_grad():
            model(x, x)
    assert len(calls) == 2 + 3
    for plain, recomputed in zip(*results, strict=True):
        assert torch.equal(plain, recomputed)


def test_documents_are_read_as_if_each_stood_alone():
    """With positions that restart, a text is the same wherever it stands; only its own changes."""
    model = _tiny(attend="within-documents", end_of_text=7, restart_positions=True)
    idx = torch.randint(8, 50, (1, 12))
    idx[0, [0, 5]] = 7
    whole = model(idx)[0]
    torch.testing.assert_close(whole[:, 5:], model(idx[:, 5:])[0])
    torch.testing.assert_close(whole[:, :5], model(idx[:, :5])[0])
    plain = _tiny(attend="within-documents", end_of_text=7)
    plain.load_state_dict(model.state_dict())
    assert not torch.allclose(plain(idx)[0][:, 5:], whole[:, 5:])


@pytest.mark.parametrize(
    "options",
    [{}, {"recompute": "block"}, {"attend": "within-documents", "end_of_text": 7}],
)
def test_the_model_compiles_whole_and_agrees(options):
    model = _tiny(**options)
    x = torch.randint(0, 50, (2, 12))
    _, expected = model(x, x)
    expected.backward()
    grads = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    _, loss = torch.compile(model, fullgraph=True, backend="aot_eager")(x, x)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close([p.grad for p in model.parameters()], grads)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_embd": 10, "n_head": 3}, "n_embd=10 cannot be split over n_head=3"),
        ({"norm": "batchnorm"}, "norm must be one of layernorm, quicknorm, got 'batchnorm'"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1 "),
        ({"restart_positions": True}, "give --attend within-documents as well"),
        ({"attend": "within-documents"}, "end_of_text, the token at which a document begins"),
        ({"recompute": "layer"}, "recompute must be one of none, block, got 'layer'"),
        ({"window": 0}, "window must be at least 1"),
        ({"n_layer": 0}, "n_layer must be at least 1"),
    ],
)
def test_impossible_configurations_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**options)


def test_the_module_checks_itself():
    done = run_forked("-m", "gpt2.model")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr
    assert "124,439,808 parameters" in done.stdout
    assert "move the logits before by 0," in done.stdout
