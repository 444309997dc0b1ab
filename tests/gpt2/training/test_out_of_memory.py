"""Memory that runs out: recognised, and answered with the estimate and what to lower."""

import errno

import numpy as np
import pytest
import torch

from gpt2.common.devices import human_bytes
from gpt2.config import TrainConfig, settle
from gpt2.training import out_of_memory
from gpt2.training.estimate import training_memory
from gpt2.training.out_of_memory import OutOfMemory, is_out_of_memory, oom_advice
from tests.gpt2.data.streams import make_trainer

SETTINGS = {"steps": 4, "batch_size": 4, "grad_accum": 3, "auto_batch": True}


def _raised(act) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011 (what it is, is what is asked)
        act()
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        _raised(lambda: torch.empty(1 << 59)),
        _raised(lambda: np.empty(1 << 59)),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("unable to mmap 533 bytes from file <x>: Cannot allocate memory (12)"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_exhausted_memory_is_recognised_in_all_its_forms(error):
    assert is_out_of_memory(error)
    with (
        pytest.raises(OutOfMemory, match="out of memory; buy some"),
        oom_advice(lambda: "buy some"),
    ):
        raise error


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes do not fit"), OSError(errno.ENOSPC, "No space"), KeyError("x")]
)
def test_other_errors_pass(error):
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)) as caught, oom_advice(lambda: "buy some"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    ("now", "smaller"),
    [((16, 2), (8, 4)), ((6, 2), (3, 4)), ((5, 1), (1, 5)), ((7, 3), (3, 7)), ((1, 8), None)],
)
def test_a_smaller_micro_batch_keeps_the_step(now, smaller):
    settings = settle(TrainConfig(batch_size=now[0], grad_accum=now[1]))
    assert out_of_memory.smaller_micro_batch(settings) == smaller


def test_the_message_has_the_estimate_and_that_of_less(tmp_path):
    """Memory that runs out in an evaluation, not in a step: nothing is halved."""
    trainer = make_trainer(tmp_path, **SETTINGS, eval_every=2)

    def exhausted() -> float:
        raise MemoryError

    trainer._validate = exhausted
    with pytest.raises(OutOfMemory) as caught:
        trainer.fit()
    message = str(caught.value)
    assert "try a lower --batch-size (now 4; raise --grad-accum to keep the step" in message
    assert "--auto-batch" not in message, "it is on"
    for size, count in ((4, 3), (2, 6)):
        memory = training_memory(
            trainer.model.config,
            batch_size=size,
            seq_len=16,
            dtype=torch.float32,
            device_type="cpu",
            grad_accum=count,
        )
        assert (str(memory) if size == 4 else human_bytes(memory.peak)) in message
    assert "--batch-size 2 --grad-accum 6" in message
    assert f"The checkpoints in {tmp_path} are intact" in message


def test_an_update_that_got_half_way_is_not_done_again(tmp_path):
    trainer = make_trainer(tmp_path, **SETTINGS, optimizer="muon")

    def exhausted(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    trainer.optimizers[1].register_step_pre_hook(exhausted)  # the first has changed its weights
    with pytest.raises(OutOfMemory, match="in step 1, in the update of the weights; try"):
        trainer.fit()
    assert trainer.settings.batch_size == 4
