"""kernels.integrations.transformers: a GPT-2 of transformers computes the same with our kernels.

transformers runs in a child process, away from the repository, as it imports a package `kernels`
when it finds one; results come back through files.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from kernels.testing import judge

ROOT = Path(__file__).resolve().parents[3]
CHILD = ROOT / "tests/kernels/integrations/children/patched_gpt2.py"
KERNELS = {
    "attention": {"attention_fwd_kernel", "attention_bwd_dkv_kernel"},
    "norms": {"norm_fwd_kernel", "norm_bwd_kernel"},
    "mlp": {"_gelu_fwd_kernel", "_gelu_bwd_kernel"},
    "loss": {"_cross_entropy_kernel"},
}
CASES = [("eval", "+".join(KERNELS)), *(("train", case) for case in ("+".join(KERNELS), *KERNELS))]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts from the child process."""
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("needs transformers")
    folder = tmp_path_factory.mktemp("patched")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, str(CHILD), str(ROOT), str(folder)],
        cwd=folder,
        env=environment | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads((folder / "facts.json").read_text())
    return load_file(folder / "tensors.safetensors"), facts


def of(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {k.removeprefix(f"{name}/"): v for k, v in tensors.items() if k.startswith(f"{name}/")}


@pytest.mark.parametrize(("mode", "case"), CASES)
def test_logits_loss_and_gradients_keep_within_the_error_budget(results, mode, case):
    tensors, facts = results
    got, plain, exact = (of(tensors, f"{mode}/{name}") for name in (case, "plain", "exact"))
    skipped = {"logits"} if mode == "train" and "loss" in case else set()
    assert got.keys() == exact.keys() - skipped
    assert len(got) > 25
    report = [judge(name, got[name], plain[name], exact[name]) for name in got]
    assert not [str(quantity) for quantity in report if not quantity.within]
    launched = set(facts[f"{mode}/{case}/launched"])
    for part, kernels in KERNELS.items():
        runs = part in case.split("+") and not (part == "loss" and mode == "eval")
        assert kernels <= launched if runs else not kernels & launched, part


def test_autocast_reaches_the_kernels(results):
    """A rounding is one of bf16."""
    tensors, _ = results
    got, plain = of(tensors, "autocast/patched"), of(tensors, "autocast/plain")
    exact = of(tensors, "train/exact")
    report = [judge(name, got[name], plain[name].bfloat16(), exact[name]) for name in got]
    assert not [str(quantity) for quantity in report if not quantity.within]


def test_training_skips_the_logits_and_evaluation_does_when_asked(results):
    tensors, facts = results
    assert "logits" not in of(tensors, f"train/{'+'.join(KERNELS)}")
    assert facts["skip_logits in evaluation"]
    for case in ("skipped", "accumulated", "tuple"):
        torch.testing.assert_close(tensors[f"{case}/patched"], tensors[f"{case}/plain"])
    assert not torch.isclose(tensors["accumulated/plain"], tensors["tuple/plain"])


def test_dropout_of_attention_weights_stays(results):
    first, second = results[0]["dropout/train"]
    assert not torch.allclose(first, second, rtol=1e-2)
    assert torch.equal(*results[0]["dropout/eval"])


def test_generation_and_masks_take_the_library_s_own_attention(results):
    """The prompt is one call of the kernel in each layer; padding and later tokens are none."""
    tensors, facts = results
    for case in ("whole", "padded"):
        assert tensors[f"{case}/patched"].tolist() == tensors[f"{case}/plain"].tolist()
        assert facts[f"{case}/plain/attention"] == 0
    assert facts["whole/patched/attention"] == 2
    assert facts["padded/patched/attention"] == 0
    torch.testing.assert_close(tensors["masked/patched"], tensors["masked/plain"])
    assert "computed by PyTorch's SDPA" in facts["warning"]
    assert facts["hidden states"] == [[2, 33, 48]] * 3


@pytest.mark.parametrize(
    ("case", "calls"), [("parts", 4), ("static", 2), ("hidden", 0), ("trained", 2)]
)
def test_tokens_attend_to_a_cache_by_our_kernel_where_nothing_but_the_future_is_hidden(
    results, case, calls
):
    """Two layers, each with one call or two. A gradient through a cache is PyTorch's."""
    tensors, facts = results
    got, plain, exact = (tensors[f"{case}/{name}"] for name in ("patched", "plain", "exact"))
    assert judge("logits", got, plain, exact).within
    assert facts[f"{case}/patched/attention"] == calls
    assert facts[f"{case}/plain/attention"] == 0


def test_unpatching_gives_the_very_model_back(results):
    tensors, facts = results
    assert facts["restored"]
    assert facts["attention restored"] == "sdpa"
    assert torch.equal(tensors["restored/patched"], tensors["restored/plain"])


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("another model", "a GPT2LMHeadModel of transformers can be patched, got a GPT2ForTok"),
        ("twice", "patched already: unpatch_transformers_gpt2"),
        ("relu", "transformer.h.0.mlp.act is ReLU"),
        ("scale", "do not compute scale_attn_by_inverse_layer_idx=True"),
        ("norm", "transformer.h.1.ln_2 is a RMSNorm, not an nn.LayerNorm"),
        ("adapter", "transformer.h.1.mlp.c_fc is a Linear, not transformers' Conv1D"),
        ("adapter afterwards", "mlp.c_fc is a Linear, not transformers' Conv1D"),
        ("head", "lm_head is a Linear, not an nn.Linear without bias"),
        ("weights", "output_attentions: our attention never holds its weights; unpatch_transf"),
    ],
)
def test_what_cannot_be_patched_is_refused_by_name(results, case, message):
    assert message in results[1]["refused"][case]
    assert results[1]["untouched when refused"]
    assert results[1]["weights as the message says"] == [2, 3, 33, 33]


def test_transformers_does_not_take_our_package_for_its_own(results):
    assert not results[1]["transformers takes our package for PyPI's"]


def test_the_other_package_called_kernels_is_not_taken_for_ours(tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels/__init__.py").write_text("def get_kernel(): ...\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import kernels; "
        f"sys.path.insert(0, {str(ROOT)!r}); import kernels.integrations.transformers"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "No module named 'kernels.integrations'" in done.stderr
