"""The loss with its gradient: cross-entropy of logits, and of the output head.

    pytest bench/bench_losses.py --benchmark-only

`cross_entropy` starts from logits (N, V): ours, out of place and in place; eager, which takes the
softmax in fp32 as autocast does; the same under torch.compile; Liger-Kernel, in place.
`linear_cross_entropy` starts from hidden states (N, C) and the head's weight (V, C): our kernel
(triton), our chunked form in PyTorch (torch-chunked, `gpt2/loss.py`), eager head and loss, the same
under torch.compile, Liger-Kernel with its sum over chunks in fp32, as ours is, and PyTorch's
chunked `F.linear_cross_entropy` where it exists.

V is GPT-2's 50257, padded to 50304 as all trainers do; all of them are classes here, so that no
variant has to mask. Variants that write over the logits are given new ones each time, untimed.

Rates: for `cross_entropy` the bytes that must move, 2 N V values (read logits, write gradient); for
`linear_cross_entropy` the FLOPs of its three products, 6 N C V.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.harness.measure import Case, Measure, Setting
from bench.harness.passes import Contender, Function, Inputs, operator_case
from bench.harness.peers import eager_and_compiled, liger, ours
from gpt2.loss import linear_cross_entropy as chunked_linear_cross_entropy
from kernels.cross_entropy import cross_entropy, cross_entropy_reference
from kernels.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_reference

PADDED, UNPADDED = 50304, 50257
CHECKED_ROWS, INTERPRETED_ROWS = 256, 4


def _eager(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), targets)


def _eager_head(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return _eager(x @ weight.T, targets)


def _inplace(logits: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(logits, targets, inplace=True)


def _chunked_by_pytorch(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions()
    loss: Tensor = F.linear_cross_entropy(x, weight, targets, options=options)
    return loss


def _liger(ops: Any) -> Function:
    apply = ops.LigerCrossEntropyFunction.apply
    return lambda logits, targets: apply(logits, targets, None)[0]


def _liger_head(ops: Any) -> Function:
    apply = ops.LigerFusedLinearCrossEntropyFunction.apply
    # Bias, class weights, ignored class, z-loss, smoothing, reduction, softcap, whether to return
    # the z-loss, and the dtype of the sum over chunks.
    options = (None, None, -100, 0.0, 0.0, "mean", None, False, torch.float32)
    return lambda x, weight, targets: apply(x, weight, targets, *options)[0]


def cases(setting: Setting) -> list[Case]:
    if setting.smoke:
        heads, logits = [(16, PADDED, 0)], [(16, PADDED, 1)]
    elif not setting.on_gpu:
        heads, logits = [(512, PADDED, 0)], [(512, PADDED, 1)]
    else:
        heads = [(8192, PADDED, 0), (32768, PADDED, 1), (65536, PADDED, 2)]
        logits = [(8192, PADDED, 0)]
        if setting.profile == "full":
            heads += [(2048, PADDED, 2), (16384, PADDED, 2), (8192, UNPADDED, 2)]
            logits += [(32768, PADDED, 2), (8192, UNPADDED, 2)]
    return [
        *(_head_case(setting, rows, V, priority) for rows, V, priority in heads),
        *(_logits_case(setting, rows, V, priority) for rows, V, priority in logits),
    ]


def bench_losses(case: Case, variant: str, measure: Measure) -> None:
    measure(case, variant)


def _logits_case(setting: Setting, rows: int, V: int, priority: int) -> Case:
    def inputs(rows: int = rows) -> Inputs:
        logits = torch.randn(rows, V, device=setting.device, dtype=setting.dtype)
        return {"logits": logits.requires_grad_(), "targets": _targets(setting, rows)}

    def contenders() -> Sequence[Contender]:
        return [
            ours(setting, cross_entropy),
            ours(setting, _inplace, name="triton in place", overwrites=("logits",)),
            *eager_and_compiled(_eager, compile=not setting.smoke),
            liger(setting, _liger, overwrites=("logits",)),
        ]

    return operator_case(
        "losses",
        {"op": "cross_entropy", "N": rows, "V": V, "pass": "both", "dtype": setting.dtype_name},
        contenders,
        reference=cross_entropy_reference,
        inputs=inputs,
        check_inputs=lambda: inputs(_checked_rows(setting)),
        per_second={"gbps": 2 * rows * V * setting.dtype.itemsize / 1e9},
        priority=priority,
    )


def _head_case(setting: Setting, rows: int, V: int, priority: int) -> Case:
    C = 64 if setting.smoke else 768

    def inputs(rows: int = rows) -> Inputs:
        x = torch.randn(rows, C, device=setting.device, dtype=setting.dtype)
        weight = torch.randn(V, C, device=setting.device, dtype=setting.dtype) * C**-0.5
        leaves = {"x": x.requires_grad_(), "weight": weight.requires_grad_()}
        return {**leaves, "targets": _targets(setting, rows)}

    def contenders() -> Sequence[Contender]:
        no_chunked = None
        if not hasattr(F, "linear_cross_entropy"):
            no_chunked = f"PyTorch {torch.__version__} has no F.linear_cross_entropy"
        return [
            ours(setting, linear_cross_entropy),
            Contender("torch-chunked", chunked_linear_cross_entropy, ours=True),
            *eager_and_compiled(_eager_head, compile=not setting.smoke),
            Contender("F.linear_cross_entropy", _chunked_by_pytorch, skip=no_chunked),
            liger(setting, _liger_head),
        ]

    op = "linear_cross_entropy"
    return operator_case(
        "losses",
        {"op": op, "N": rows, "C": C, "V": V, "pass": "both", "dtype": setting.dtype_name},
        contenders,
        reference=linear_cross_entropy_reference,
        inputs=inputs,
        check_inputs=lambda: inputs(_checked_rows(setting)),
        per_second={"tflops": 6 * rows * C * V / 1e12, "tokens_per_s": rows},
        priority=priority,
    )


def _checked_rows(setting: Setting) -> int:
    return CHECKED_ROWS if setting.on_gpu or not setting.smoke else INTERPRETED_ROWS


def _targets(setting: Setting, rows: int) -> Tensor:
    return torch.randint(UNPADDED, (rows,), device=setting.device)
