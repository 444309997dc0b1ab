#!/usr/bin/env bash
# torch 2.13.0: torch.optim.Muon makes its updates orthogonal in bfloat16 whatever the dtype of the
# parameters, and has no option for it. On a CPU without instructions for bfloat16 (no AVX512-BF16,
# no AMX), which is most laptops, a step over float32 matrices takes several times as long as the same
# iteration in float32, and for a small model far longer than forward and backward together. On a CPU
# that has them the script says so and shows nothing.
#
# Output seen, on a CPU with AVX2:
#   a step of torch.optim.Muon over 256 x 1024: 758 ms; the iteration in float32: 31 ms: 24.3 times as long
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
. venv/bin/activate
pip install -q torch==2.13.0 numpy==2.4.6

cat > steps.py <<'P'
import statistics
import time
from pathlib import Path

import torch

flags = Path("/proc/cpuinfo").read_text()
if "avx512_bf16" in flags or "amx_bf16" in flags:
    raise SystemExit("this CPU multiplies bfloat16 itself: nothing to show")
torch.set_num_threads(1)
weight = torch.nn.Parameter(torch.randn(256, 1024))
weight.grad = torch.randn(256, 1024)
muon = torch.optim.Muon([weight], lr=0.01)


def in_float32():
    x = weight.grad / weight.grad.norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    return x


seconds = {"torch.optim.Muon": [], "the iteration in float32": []}
for _ in range(7):
    for (name, times), step in zip(seconds.items(), (muon.step, in_float32)):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
step, iteration = (statistics.median(times) for times in seconds.values())
print(f"a step of torch.optim.Muon over 256 x 1024: {step * 1e3:.0f} ms;", end=" ")
print(f"the iteration in float32: {iteration * 1e3:.0f} ms: {step / iteration:.1f} times as long")
assert step > 2 * iteration, "changed: it is no longer slow"
P
python steps.py
