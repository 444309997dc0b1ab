"""The kernels under stress, in short: the same random cases every time, and planted faults."""

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import Phase

from kernels import attention, cross_entropy, gelu, linear_cross_entropy, swiglu
from kernels._attention import kernels as _attention_kernels
from kernels._attention import operators as _attention_ops
from kernels._common import partials as _partials
from kernels._norm import kernels as _norm_kernels
from kernels._norm import operators as _norm
from tests.campaigns.options import Budget
from tests.campaigns.search import ALL_PHASES
from tests.campaigns.stress import losses, pointwise
from tests.campaigns.stress.campaign import OPERATORS, SHORT, stress
from tests.campaigns.stress.memory import Memory
from tests.kernels import test_attention_mutations as attention_faults
from tests.kernels import test_fused_mutations as fused_faults
from tests.kernels.mutations import Mutation, expect_caught


def check_cases(
    name: str, cases: int, phases: Collection[Phase] = ALL_PHASES, seed: int = 0
) -> None:
    found = stress(name, Budget(cases, None), seed, phases=phases)
    assert not found.failures, "\n".join(found.failures)


@pytest.mark.parametrize("name", OPERATORS)
def test_random_cases_keep_the_contract(name: str) -> None:
    check_cases(name, SHORT[name])


Place = tuple[ModuleType, Sequence[ModuleType], Sequence[Mutation]]
# What is mutated, who uses it, and the faults to choose from.
ATTENTION: Place = (
    _attention_kernels, [_attention_ops, attention], attention_faults.KERNELS,
)  # fmt: skip
LAUNCHER: Place = (_attention_ops, [attention], attention_faults.OPERATORS)
NORM: Place = (_norm_kernels, [_norm], fused_faults.NORM_KERNELS)
PARTIALS: Place = (_partials, [_norm], fused_faults.PARTIALS)
GELU: Place = (gelu, [pointwise], fused_faults.GELU_FAULTS)
SWIGLU: Place = (swiglu, [pointwise], fused_faults.SWIGLU_FAULTS)
LOSS: Place = (cross_entropy, [losses], fused_faults.LOSS_FAULTS)
HEAD: Place = (linear_cross_entropy, [losses], fused_faults.OPERATOR_FAULTS)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("name", "place", "fault", "seed"),
    [
        ("attention", ATTENTION, "one row past the end is read", 0),
        ("attention", ATTENTION, "the dropout seed is ignored", 3),
        ("attention", LAUNCHER, "the gradient's layout is not looked at", 5),
        ("layer_norm", NORM, "the last row is lost", 0),
        ("add_rms_norm", NORM, "eps is dropped", 0),
        ("rms_norm", PARTIALS, "one program's sums are left out", 0),
        ("gelu_tanh", GELU, "another cubic coefficient", 0),
        ("swiglu_packed", SWIGLU, "the gradient overwrites the projection", 0),
        ("cross_entropy", LOSS, "ignored rows keep what their gradient's memory held", 0),
        ("linear_cross_entropy", HEAD, "every chunk overwrites dW", 0),
    ],
)
def test_a_planted_fault_is_found(
    name: str, place: Place, fault: str, seed: int, tmp_path: Path
) -> None:
    """By a seed that soon draws what the fault takes."""
    module, users, faults = place
    (mutation,) = (mutation for mutation in faults if mutation.fault == fault)
    arguments = {"name": name, "cases": 5 * SHORT[name], "phases": [Phase.generate], "seed": seed}
    planted = dataclasses.replace(mutation, test=check_cases, arguments=arguments)
    expect_caught(module, users, planted, tmp_path)


@pytest.mark.parametrize(("offset", "kept"), [(-1, False), (3, False), (7, False), (6, True)])
def test_a_write_beside_a_view_or_into_an_input_is_seen(offset, kept, device) -> None:
    memory = Memory(device)
    view = memory.place(torch.zeros(2, 3), (4, 1), 0, "logits", kept=kept)
    if not kept:
        view.fill_(1.0)
    memory.check()
    view.as_strided((1,), (1,), view.storage_offset() + offset).fill_(1 / 3)
    with pytest.raises(AssertionError, match=r"logits: 4 bytes .* not the kernel's"):
        memory.check()


def test_what_a_launcher_allocates_is_guarded(device: torch.device) -> None:
    memory = Memory(device)
    like = torch.zeros(3, device=device)
    with memory.watch():
        made = [
            torch.empty(2, 3, device=device), torch.empty((4,), device=device),
            torch.empty_like(like), like.new_empty((2, 2), dtype=torch.float16),
        ]  # fmt: skip
    assert all(x.isnan().all() for x in made)
    memory.check()
    for x in made:
        x.zero_()
    memory.check()
    made[2].as_strided((1,), (1,), made[2].storage_offset() + 3).zero_()
    with pytest.raises(AssertionError, match=r"around an output \(3,\) torch.float32"):
        memory.check()
