#!/usr/bin/env bash
# torch 2.13.0: on a CPU, torch.utils.flop_counter.FlopCounterMode counts nothing for
# scaled_dot_product_attention, forward and backward. Its registry has the flash, memory-efficient and
# cuDNN kernels of GPUs, not _scaled_dot_product_flash_attention_for_cpu, which a CPU takes by default; an
# operator that is not in it counts 0, and no warning tells. The same attention written as products is
# counted, and so is the same call with the math kernel. So a model has fewer FLOPs by the counter
# where its attention is faster, and a utilisation that is made of them is too low.
#
# Output seen, 1 x 4 heads x 256 x 64, forward and backward, in millions:
#   two products and their gradients: 201.3
#   sdpa, math kernel: 201.3
#   sdpa, as a CPU chooses: 0.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
. venv/bin/activate
pip install -q torch==2.13.0 numpy

cat > show.py <<'P'
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

q, k, v = (torch.randn(1, 4, 256, 64, requires_grad=True) for _ in range(3))


def products():
    return ((q @ k.mT) / 8).softmax(-1) @ v


def sdpa():
    return scaled_dot_product_attention(q, k, v)


def math():
    with sdpa_kernel(SDPBackend.MATH):
        return sdpa()


found = {}
for name, attention in {
    "two products and their gradients": products,
    "sdpa, math kernel": math,
    "sdpa, as a CPU chooses": sdpa,
}.items():
    with FlopCounterMode(display=False) as counter:
        attention().sum().backward()
    found[name] = counter.get_total_flops() / 1e6
    print(f"{name}: {found[name]:.1f}")
torch.testing.assert_close(products(), sdpa())
assert list(found.values()) == [201.326592, 201.326592, 0], "changed"
P
python show.py
