#!/usr/bin/env bash
# triton 3.7.1: the interpreter takes bits for numbers in two places where a GPU does not.
# tl.umulhi gives the high half of a product of unsigned integers; given negative int32, the
# interpreter widens them with their sign, multiplies modulo 2**64, and the high half comes out 0.
# The sum of two int1 is one bit and wraps (1 + 1 = 0); NumPy's sum of booleans is a logical or.
# Triton 3.9.0's interpreter gives the right values in both.
#
# Output seen:
#   umulhi(x, x): [0, 0, 0, 268435456], of unsigned bits [-2, -4, 0, 268435456]
#   flag + flag: [1, 1, 0, 0], one bit [0, 0, 0, 0]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
. venv/bin/activate
pip install -q torch==2.13.0 triton==3.7.1 numpy==2.4.6

cat > show.py <<'P'
import torch
import triton
import triton.language as tl


@triton.jit
def kernel(x_ptr, high_ptr, sum_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(x_ptr + i)
    tl.store(high_ptr + i, tl.umulhi(x, x))
    flag = x < 0
    tl.store(sum_ptr + i, (flag + flag).to(tl.int32))


x = torch.tensor([-1, -2, 3, 1 << 30], dtype=torch.int32)
high, total = torch.zeros_like(x), torch.zeros_like(x)
kernel[(1,)](x, high, total, N=4)
exact = torch.tensor([(int(v) % 2**32) ** 2 >> 32 for v in x]).to(torch.int32).tolist()
print(f"umulhi(x, x): {high.tolist()}, of unsigned bits {exact}")
print(f"flag + flag: {total.tolist()}, one bit [0, 0, 0, 0]")
assert high.tolist() == [0, 0, 0, 1 << 28] != exact, "changed"
assert total.tolist() == [1, 1, 0, 0], "changed"
P
TRITON_INTERPRET=1 python show.py
