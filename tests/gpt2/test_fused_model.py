"""The model on our kernels against the model on PyTorch's: one training step, every combination."""

from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from gpt2.config import PORTABLE, GPTConfig
from gpt2.model import GPT
from kernels.testing import judge
from tests.gpt2.stand_ins import every_combination
from tests.kernels.work_counts import count_work

FUSED = dict.fromkeys(PORTABLE, "triton")


def _model(**options: object) -> GPT:
    """Odd sizes, and two layers, so that a residual addition is fused across them."""
    shape = {"n_layer": 2, "n_head": 3, "n_embd": 48, "vocab_size": 131, "block_size": 33}
    torch.manual_seed(0)
    model = GPT(GPTConfig(**(shape | PORTABLE | options)))  # type: ignore[arg-type]
    with torch.no_grad():  # away from the special values of a fresh model
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.05)
        model.wte.weight[131:] = 0
    return model


def _batch(seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randint(0, 131, (2, 2, 33), generator=generator)
    y[0, :5] = -100
    return x, y


def _step(model: torch.nn.Module, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The losses of some batches and every gradient of the first of them, by name.

    Of several, as the error of a single number may be small by luck.
    """
    _, loss = model.to(dtype)(*_batch())
    loss.backward()
    found = {name: p.grad.detach().clone() for name, p in model.named_parameters()}
    model.zero_grad()
    losses = [loss, *(model(*_batch(seed))[1] for seed in range(2, 9))]
    return {"loss": torch.stack(losses).detach()} | found


def _check(got: dict[str, Tensor], options: dict[str, object]) -> None:
    plain, exact = _step(_model(**options)), _step(_model(**options), torch.float64)
    assert got.keys() == exact.keys()
    judged = [judge(n, got[n], plain[n], exact[n]) for n in exact]
    worst = [str(quantity) for quantity in judged if not quantity.within]
    assert not worst, "; ".join(worst)


@every_combination(
    norm=["layernorm", "quicknorm"],
    norm_position=["pre", "post"],
    mlp=["gelu", "swiglu"],
    tie=[True, False],
)
def test_a_step_on_our_kernels_keeps_the_error_budget(options):
    model = _model(**options)
    model.use(**FUSED)
    got = _step(model)
    _check(got, options)
    if options["tie"]:  # a head of its own calls nothing else
        torch._dynamo.reset()
        _, loss = torch.compile(model, fullgraph=True, backend="aot_eager")(*_batch())
        loss.backward()
        compiled = {"loss": loss.detach()} | {n: p.grad for n, p in model.named_parameters()}
        got["loss"] = got["loss"][0]
        torch.testing.assert_close(compiled, got, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", PORTABLE)
def test_each_kernel_can_be_swapped_alone(name):
    model = _model(**{name: "triton"})
    assert [n for n in PORTABLE if getattr(model.config, n) == "triton"] == [name]
    with count_work() as ours:
        got = _step(model)
    with count_work() as none_of_ours:
        _check(got, {})
    assert ours.launches
    assert not none_of_ours.launches


def test_recomputed_layers_run_our_kernels_twice_and_give_the_same_bits():
    steps, launched = [], []
    for recompute in ("none", "block"):
        model = _model(**FUSED, recompute=recompute)
        with count_work() as work:
            steps.append(_step(model))
        launched.append([launch.kernel for launch in work.launches].count("attention_fwd_kernel"))
    assert launched == [16, 18]  # two layers of eight batches; one of them goes backward
    for name, expected in steps[0].items():
        assert torch.equal(steps[1][name], expected), name


@pytest.mark.parametrize("position", ["pre", "post"])
def test_the_model_runs_the_function_that_its_layers_state(position):
    """Bit for bit in PyTorch's operators; our kernels sum in another order."""
    idx, _ = _batch()
    model = _model(norm_position=position)
    for kernel, atol in (("torch", 0.0), ("triton", 1e-5)):
        model.use(norm_kernel=kernel)
        x = model.embed(idx)
        for layer in model.h:
            x = layer(x)
        x = model.ln_f(x) if position == "pre" else x
        torch.testing.assert_close(model.hidden(idx), x, rtol=0, atol=atol)


def test_dropout_and_a_window_reach_the_fused_model():
    plain, fused = _model(window=7), _model(window=7, **FUSED)
    x, y = _batch()
    torch.testing.assert_close(plain(x, y)[1], fused(x, y)[1])
    torch.manual_seed(3)
    dropped = _model(dropout=0.5, norm_kernel="triton")(x, y)[1]
    assert not torch.isclose(dropped, _model()(x, y)[1], rtol=1e-3)


@pytest.mark.parametrize("position", ["pre", "post"])
def test_under_autocast_a_step_keeps_its_budget_and_the_residual_stream_stays_fp32(position):
    model = _model(norm_position=position, **FUSED)
    for layer in model.h:
        layer.ln_2.add = Mock(wraps=layer.ln_2.add)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # which leaves float64 as it is
        _check(_step(model), {"norm_position": position})
    seen = {call.args[0].dtype for layer in model.h for call in layer.ln_2.add.call_args_list}
    assert seen == {torch.float32}
