"""Cross-entropy of logits against its reference: loss, gradient, options, extreme logits."""

import math
from functools import partial
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import kernels.cross_entropy
from kernels.cross_entropy import cross_entropy, cross_entropy_reference
from kernels.testing import Quantity, compare
from tests.kernels import fused
from tests.kernels.fused import CUDA, DTYPES, LAYOUTS, MARKS, randn

pytestmark = MARKS
IGNORED = -100
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.1},
    "z-loss": {"z_loss": 1e-2},
    "all": {"label_smoothing": 0.2, "z_loss": 1e-3, "ignore_index": 5},
}


def inputs(*shape, dtype=torch.float32, device, scale=2.0):
    """Logits that ask for a gradient, and targets of which every fourth is ignored."""
    targets = torch.randint(0, shape[-1], shape[:-1], device=device)
    targets.view(-1)[1::4] = IGNORED
    logits = scale * randn(*shape, dtype=dtype, device=device)
    return {"logits": logits.requires_grad_(), "targets": targets}


def check(given: dict[str, Tensor], **options: Any) -> dict[str, Quantity]:
    """Compare with the reference.

    p - onehot cancels where the target has nearly all of the probability, always with one class.
    """
    return compare(
        partial(cross_entropy, **options),
        partial(cross_entropy_reference, **options),
        given,
        cancelled={"dlogits": 1.0},
    )


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 512 columns in float32, so that rows of a few thousand are several."""
    monkeypatch.setattr(kernels.cross_entropy, "SHORT_THREADS", 32)
    monkeypatch.setattr(kernels.cross_entropy, "SMOOTHED_LOADS", 4)


def test_the_reference_is_that_of_pytorch():
    given = inputs(9, 17, device=torch.device("cpu"))
    torch.testing.assert_close(cross_entropy_reference(**given), F.cross_entropy(*given.values()))
    torch.testing.assert_close(
        cross_entropy_reference(**given, label_smoothing=0.3),
        F.cross_entropy(*given.values(), label_smoothing=0.3),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 1), (1, 3), (2, 5, 113), (7, 257), (3, 5000)], ids=str)
def test_matches_reference(shape, dtype, device):
    check(inputs(*shape, dtype=dtype, device=device))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_options_over_several_blocks(options, dtype, device):
    given = inputs(6, 2600, dtype=dtype, device=device)
    if "ignore_index" in options:
        given["targets"][given["targets"] == IGNORED] = options["ignore_index"]
    check(given, **options)


def weighted(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs with weights of the targets: some are 0, as for the tokens of a prompt."""
    weights = torch.rand(given["targets"].shape, device=given["targets"].device) + 0.5
    weights.view(-1)[::3] = 0.0
    return given | {"token_weights": weights}


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_loss_of_each_token_and_its_weight(reduction, dtype, device):
    given = inputs(2, 3, 1100, dtype=dtype, device=device)
    for inplace in (False, True):
        for case in (given, weighted(given)):
            # In place the logits are overwritten: each case has its own.
            case = case | {"logits": case["logits"].detach().clone().requires_grad_()}
            options = {"reduction": reduction, "label_smoothing": 0.1, "z_loss": 1e-3}
            call = partial(cross_entropy, **options)
            if inplace:
                call = partial(_in_place, **options)
            compare(
                call, partial(cross_entropy_reference, **options), case, cancelled={"dlogits": 1.0}
            )
    assert cross_entropy(**given, reduction="none").shape == (2, 3)


def _in_place(logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
    return cross_entropy(logits * 1.0, targets, inplace=True, **options)


def test_weights_that_sum_to_nothing_give_no_loss_and_no_gradient(device):
    given = inputs(4, 11, device=device)
    loss = cross_entropy(**given, token_weights=torch.zeros(4, device=device))
    assert loss == 0
    assert not torch.autograd.grad(loss, given["logits"])[0].any()


@pytest.mark.parametrize(("width", "vocab_size"), [(50304, 50257), (50257, None)])
def test_the_vocabulary_of_gpt2(width, vocab_size, device):
    given = inputs(3, width, dtype=torch.float16, device=device)
    given["targets"] = torch.tensor([0, 50256, IGNORED], device=device)
    check(given, vocab_size=vocab_size)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("vocab_size", [1, 500, 512, 513, 1024, 1111, 1150])
@pytest.mark.parametrize("options", ["plain", "all"])
def test_padding_takes_no_part(vocab_size, options, device):
    """Neither what padding holds (NaN here) nor its place inside or outside of a block matters."""
    logits = torch.full((4, 1150), math.nan, device=device)
    logits[:, :vocab_size] = torch.randn(4, vocab_size, device=device)
    targets = torch.tensor([0, vocab_size - 1, vocab_size // 2, IGNORED], device=device)
    settings = OPTIONS[options] | {"ignore_index": IGNORED}
    padded = logits.clone().requires_grad_()
    loss = cross_entropy(padded, targets, vocab_size=vocab_size, **settings)
    (gradient,) = torch.autograd.grad(loss, padded)
    assert (gradient[:, vocab_size:] == 0).all()
    cut = logits[:, :vocab_size].double().requires_grad_()
    exact = cross_entropy_reference(cut, targets, **settings)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        gradient[:, :vocab_size].double(), torch.autograd.grad(exact, cut)[0], rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_reads_any_layout(layout, device):
    given = inputs(2, 5, 20, device=device)
    given["logits"] = layout(given["logits"].detach()).requires_grad_()
    given["targets"] = given["targets"].t().contiguous().t()
    check(given)


# ---- extreme logits


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("offset", [-120.0, 1e4, -1e4])
def test_an_offset_changes_nothing(offset, device):
    """All logits near -120, where exp(x) underflows, or at 1e4, where it overflows."""
    logits = torch.randint(-3, 4, (5, 1200), device=device).float()
    targets = torch.randint(0, 1200, (5,), device=device)
    moved = (logits + offset).requires_grad_()
    got = cross_entropy(moved, targets)
    (gradient,) = torch.autograd.grad(got, moved)
    still = logits.clone().requires_grad_()
    want = cross_entropy(still, targets)
    assert torch.equal(got, want)
    assert torch.equal(gradient, torch.autograd.grad(want, still)[0])


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("place", [0, 700, 1199])
def test_huge_logits(place, device):
    given = inputs(5, 1200, device=device)
    with torch.no_grad():
        given["logits"][:, place] = 1e5
    given["targets"][0] = place
    check(given)
    near_overflow = given["logits"].detach().sign().mul(65000).half()
    check(given | {"logits": near_overflow.requires_grad_()})


def test_classes_that_are_ruled_out(device):
    """Logits of -inf, whole lanes of them and the first block included."""
    given = inputs(4, 1200, device=device)
    with torch.no_grad():
        given["logits"][:, :900] = -math.inf
    given["targets"][:] = 1000
    got = cross_entropy(**given)
    (gradient,) = torch.autograd.grad(got, given["logits"])
    want = F.cross_entropy(*given.values())
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(gradient, torch.autograd.grad(want, given["logits"])[0])


def test_the_loss_of_float16_logits_is_float32(device):
    """Rounded to float16, a loss near 8 would move in steps of 0.008."""
    given = inputs(16, 3000, dtype=torch.float16, device=device)
    loss = cross_entropy(**given)
    exact = cross_entropy_reference(given["logits"].double(), given["targets"])
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)


def test_float16_gradients_survive_the_mean_until_the_loss_is_scaled(device):
    """p / n is where float16 has few digits left; times the loss scale it has them all."""
    n, v = 30, 8192
    logits = torch.zeros(n, v, dtype=torch.float16, device=device, requires_grad=True)
    targets = torch.zeros(n, dtype=torch.int64, device=device)
    (gradient,) = torch.autograd.grad(cross_entropy(logits, targets) * 2.0**16, logits)
    expected = torch.full_like(gradient, 2.0**16 / (n * v))
    torch.testing.assert_close(gradient[:, 1:], expected[:, 1:], rtol=1e-3, atol=0)


# ---- targets


def test_a_batch_without_targets_gives_zero_and_no_gradient(device):
    given = inputs(5, 30, device=device)
    given["targets"].fill_(IGNORED)
    loss = cross_entropy(**given, z_loss=1.0, label_smoothing=0.1)
    (gradient,) = torch.autograd.grad(loss, given["logits"])
    assert loss.item() == 0
    assert not gradient.any()


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8)], ids=str)
def test_an_empty_batch_gives_zero(shape, device):
    logits = torch.empty(shape, device=device, requires_grad=True)
    loss = cross_entropy(logits, torch.empty(shape[:-1], dtype=torch.int64, device=device))
    loss.backward()
    assert loss.item() == 0


@pytest.mark.skipif(CUDA, reason="a GPU answers with NaN")
@pytest.mark.parametrize("target", [100, -1, 2**40])
def test_a_target_outside_the_vocabulary_is_named(target):
    targets = torch.tensor([1, target, IGNORED])
    with pytest.raises(ValueError, match=rf"target {target} is outside the vocabulary \[0, 100\)"):
        cross_entropy(torch.zeros(3, 128), targets, vocab_size=100)


@pytest.mark.parametrize("target", [100, -1, 2**40])
def test_a_target_outside_is_nan_where_looking_would_stall(target, device, monkeypatch):
    three = torch.tensor(3.0, device=device)
    monkeypatch.setattr(kernels.cross_entropy, "count_targets", lambda *_: three)
    if not CUDA:  # the interpreter is always in checked mode
        monkeypatch.setattr("triton.language.device_assert", lambda *_: None)
    logits = torch.zeros(3, 128, device=device, requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([1, target, 2], device=device), vocab_size=100)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isnan()
    assert gradient[1, :100].isnan().all()
    assert gradient[::2].isfinite().all()


# ---- the logits' storage, and what comes back


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_inplace_writes_the_gradient_over_the_logits(dtype, device):
    given = inputs(6, 300, dtype=dtype, device=device)
    loss = cross_entropy(**given)
    (expected,) = torch.autograd.grad(loss, given["logits"])
    logits = given["logits"].clone()
    spoilt = cross_entropy(logits, given["targets"], inplace=True)
    (gradient,) = torch.autograd.grad(spoilt, logits)
    assert torch.equal(spoilt, loss)
    assert torch.equal(gradient, expected)
    assert gradient.data_ptr() == logits.data_ptr()


def test_inplace_leaves_the_logits_alone_in_evaluation(device):
    given = inputs(6, 300, device=device)
    before = given["logits"].detach().clone()
    with torch.no_grad():
        cross_entropy(**given, inplace=True)
    assert torch.equal(given["logits"], before)


def test_whoever_saved_the_logits_hears_of_the_overwriting(device):
    given = inputs(6, 30, device=device)
    logits = given["logits"].clone()
    entropy = logits.square().sum()
    loss = cross_entropy(logits, given["targets"], inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (loss + entropy).backward()


def test_inplace_refuses_what_has_to_be_copied(device):
    logits = torch.zeros(30, 6, device=device).t()
    with pytest.raises(ValueError, match=r"got strides \(1, 6\); call logits.contiguous"):
        cross_entropy(logits, torch.zeros(6, dtype=torch.int64, device=device), inplace=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("factor", [1.0, 0.25, -3.0, 0.0])
def test_the_upstream_gradient_scales(factor, dtype, device):
    given = inputs(6, 300, dtype=dtype, device=device)
    upstream = [torch.tensor(factor, device=device)]
    compare(cross_entropy, cross_entropy_reference, given, upstream=upstream)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_a_second_backward_is_refused(factor, inplace, device):
    given = inputs(5, 9, device=device)
    loss = factor * cross_entropy(given["logits"].clone(), given["targets"], inplace=inplace)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_evaluation_computes_no_gradient(device, monkeypatch):
    launch = Mock(wraps=kernels.cross_entropy.launch_cross_entropy)
    monkeypatch.setattr(kernels.cross_entropy, "launch_cross_entropy", launch)
    given = inputs(5, 9, device=device)
    trained = cross_entropy(**given)
    with torch.no_grad():
        quiet = cross_entropy(**given)
    frozen = cross_entropy(given["logits"].detach(), given["targets"])
    assert torch.equal(trained, quiet)
    assert torch.equal(trained, frozen)
    assert [call.args[5] is not None for call in launch.call_args_list] == [True, False, False]


def test_compiles_where_inplace_is_asked_for(device):
    logits, targets = inputs(5, 40, device=device).values()
    for reduction in ("mean", "none"):
        fused.check_compiles(
            lambda x, r=reduction: 3 * cross_entropy(2 * x, targets, inplace=True, reduction=r),
            [logits],
        )


def test_operators_pass_opcheck(device):
    ops = torch.ops.gpt2_triton
    logits, targets = randn(5, 24, device=device), torch.arange(5, device=device)
    settings = (20, IGNORED, 0.1, 1e-3)
    weights = torch.rand(5, device=device)
    for given in (
        (logits, targets, None, *settings, "mean"), (logits, targets, weights, *settings, "none")
    ):  # fmt: skip
        for need_grad in (True, False):
            torch.library.opcheck(ops.cross_entropy_fwd.default, (*given, need_grad))
        torch.library.opcheck(ops.cross_entropy_fwd_.default, given)
    for factor in (torch.tensor(2.0, device=device), weights):
        torch.library.opcheck(ops.scale_.default, (logits, factor))


WEIGHTS = r"token_weights must be float32 \(3,\) on (cpu|cuda:0), got torch\."
UNFIT = r"expected logits \(\.\.\., V\) and int64 targets"


@pytest.mark.parametrize(
    ("message", "change"),
    [
        (r"vocab_size must be in 1\.\.8.* got 9", {"vocab_size": 9}),
        (r"vocab_size must be in 1\.\.8.* got 0", {"vocab_size": 0}),
        (r"label_smoothing must be in \[0, 1\), got 1", {"label_smoothing": 1.0}),
        ("z_loss must be at least 0, got -1", {"z_loss": -1.0}),
        ("reduction must be 'mean' or 'none', got 'sum'", {"reduction": "sum"}),
        (WEIGHTS + r"float64 \(3,\) on cpu", {"token_weights": torch.ones(3).double()}),
        (WEIGHTS + r"float32 \(4,\) on cpu", {"token_weights": torch.ones(4)}),
        ("no gradient flows to token_weights", {"token_weights": torch.ones(3).requires_grad_()}),
        (UNFIT, {"targets": torch.arange(4)}),
        (UNFIT, {"targets": torch.arange(3).int()}),
        (UNFIT, {"logits": torch.tensor(0.0), "targets": torch.tensor(0)}),
    ],
)
def test_refuses_what_it_cannot_take(message, change, device):
    given = {"logits": torch.zeros(3, 8), "targets": torch.arange(3)} | change
    logits, targets = (given.pop(name).to(device) for name in ("logits", "targets"))
    with pytest.raises(ValueError, match=message):
        cross_entropy(logits, targets, **given)


def test_weights_that_need_a_gradient_multiply_the_losses_of_the_tokens(device):
    given, weights = inputs(6, 9, device=device), torch.rand(6, device=device)
    weights.requires_grad_()
    losses = cross_entropy(**given, reduction="none")
    (dweights,) = torch.autograd.grad((losses * weights).sum(), weights)
    torch.testing.assert_close(dweights, losses.detach())
    assert torch.isfinite(cross_entropy(**given, token_weights=weights.detach()))


# ---- on a GPU only


@pytest.mark.cuda
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [50304, 50257, 32000])
def test_cuda_matches_reference_at_full_size(width, dtype, options, device):
    check(inputs(2047, width, dtype=dtype, device=device), **options)


@pytest.mark.cuda
def test_cuda_more_than_2_to_31_logits_in_place(device):
    n, width = 2**31 // 50304 + 1000, 50304
    logits = torch.zeros(n, width, dtype=torch.bfloat16, device=device)
    logits[-5:] = torch.randn(5, width, device=device)
    targets = torch.full((n,), IGNORED, device=device)
    targets[-5:] = torch.randint(0, 50257, (5,), device=device)
    tail = logits[-5:].clone().requires_grad_()
    want = cross_entropy(tail, targets[-5:], vocab_size=50257)
    got = cross_entropy(logits.requires_grad_(), targets, vocab_size=50257, inplace=True)
    torch.testing.assert_close(got, want)
    (gradient,) = torch.autograd.grad(got, logits)
    torch.testing.assert_close(gradient[-5:], torch.autograd.grad(want, tail)[0])
    assert not gradient[:-5].any()


@pytest.mark.cuda
def test_cuda_never_waits_for_the_device(device):
    given = inputs(64, 4096, dtype=torch.bfloat16, device=device)
    fused.check_never_waits(lambda: cross_entropy(**given).backward())
