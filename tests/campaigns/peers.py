"""Kernels of others, launched to be compiled: Liger's, and those of Triton's tutorials.

Nothing of theirs is here. A folder has to hold them: the package liger_kernel, and the tutorials
05-layer-norm.py and 06-fused-attention.py from the sources of Triton.
"""

import ast
import importlib
import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

ROWS = 640


def _kernels(file: Path) -> Any:
    """Import the kernels of a tutorial, which as a whole would begin to measure a GPU."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    kept = ["import triton", "import triton.language as tl"]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and "triton.jit" in map(
            ast.unparse, node.decorator_list
        ):
            node.decorator_list = node.decorator_list[-1:]  # without the tuner
            kept.append(ast.unparse(node))
    with tempfile.NamedTemporaryFile("w", suffix=".py", delete=False) as copy:
        copy.write("\n\n".join(kept))
    spec = importlib.util.spec_from_file_location(file.stem, copy.name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tutorial_attention(folder: str, width: int, length: int) -> None:
    """The causal forward with the tile of its test, and the backward, with TMA from sm_90 on."""
    kernels = _kernels(Path(folder, "06-fused-attention.py"))
    heads, (rows, cols) = 12, (128, 64)
    q = torch.empty(2, heads, length, width, dtype=torch.float16)
    lse = torch.empty(2, heads, length)
    target = triton.runtime.driver.active.get_current_target()
    descriptors: list[Any] = [q] * 4
    if target.backend == "cuda" and target.arch >= 90:
        flat = q.view(-1, width)
        blocks = ([rows, width], [cols, width], [cols, width], [rows, width])
        descriptors = [TensorDescriptor.from_tensor(flat, block) for block in blocks]
    grid = (length // rows, 2 * heads, 1)
    kernels._attn_fwd[grid](
        0.125, lse, 2, heads, *descriptors, length,
        HEAD_DIM=width, BLOCK_M=rows, BLOCK_N=cols, FP8_OUTPUT=False, STAGE=3,
        warp_specialize=False, IS_HOPPER=target.arch == 90,
        num_warps=4, num_stages=3 if target.backend == "cuda" else 1,
    )  # fmt: skip
    kernels._attn_bwd[grid](
        q, q, q, 0.125, q, q, q, q, lse, lse, *q.stride(), heads, length,
        BLOCK_M1=32, BLOCK_N1=128, BLOCK_M2=128, BLOCK_N2=32, BLK_SLICE_FACTOR=2, HEAD_DIM=width,
        CAUSAL=True, num_warps=4, num_stages=5,
    )  # fmt: skip


def tutorial_norm(folder: str, width: int) -> None:
    kernels = _kernels(Path(folder, "05-layer-norm.py"))
    x, weight = torch.empty(ROWS, width, dtype=torch.float16), torch.empty(width)
    stats, locks = torch.empty(ROWS), torch.zeros(512, dtype=torch.int32)
    block = triton.next_power_of_2(width)
    sizes = (x.stride(0), width)
    warps = min(max(block // 256, 1), 8)
    kernels._layer_norm_fwd_fused[(ROWS,)](
        x, x, weight, weight, stats, stats, *sizes, 1e-5, BLOCK_SIZE=block, num_warps=warps
    )
    kernels._layer_norm_bwd_dx_fused[(ROWS,)](
        x, x, x, x, x, weight, stats, stats, locks, *sizes,
        GROUP_SIZE_M=256, BLOCK_SIZE_N=block, num_warps=warps,
    )  # fmt: skip


def liger(folder: str, operator: str, width: int) -> None:
    """Forward and backward of one operator on rows of `width` elements."""
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module = importlib.import_module(f"liger_kernel.ops.{operator}")
    x = torch.empty(ROWS, width, dtype=torch.bfloat16)
    weight, stats = torch.empty(width), torch.empty(ROWS)
    if operator == "layer_norm":
        module.layer_norm_forward(x, weight, weight, 1e-5)
        module.layer_norm_backward(x, x, weight, weight, stats, stats)
    elif operator == "rms_norm":
        forward = module.rms_norm_forward(x, weight, 1e-5, 0.0, "gemma", False)
        mode, block, warps = forward[-1], *forward[3:5]
        module.rms_norm_backward(x, x, weight, stats, 0.0, mode, block, warps, False, False)
    elif operator == "fused_add_rms_norm":
        forward = module.fused_add_rms_norm_forward(x, x, weight, 1e-5, 0.0, "gemma")
        mode, settings = forward[-1], forward[3:6]
        module.fused_add_rms_norm_backward(x, x, x, weight, stats, 0.0, mode, *settings, False)
    elif operator == "cross_entropy":
        arch = triton.runtime.driver.active.get_current_target().arch
        module.infer_device_arch = lambda: "blackwell" if arch in (100, 120) else "hopper"
        targets = torch.zeros(ROWS, dtype=torch.int64)
        module.cross_entropy_forward(
            x.requires_grad_(), targets, None, -100, 0.0, 0.0, "mean", None, False
        )
    else:  # swiglu, geglu
        getattr(module, f"{operator}_forward")(x, x)
        getattr(module, f"{operator}_backward")(x, x, x)
