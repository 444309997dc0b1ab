#!/usr/bin/env bash
# The first optimizer that a process makes imports PyTorch's compiler, which nothing asked for.
#
# torch 2.13.0: `import torch` leaves torch._dynamo and sympy alone. `torch.optim.SGD([parameter],
# lr=0.1)`, of one number on a CPU, imports both, because methods of Optimizer are kept from the
# compiler by a decorator that imports it when they are first called. Every process that trains,
# and a worker that makes an optimizer only to load its state, pays for some 800 modules: a good
# part of what `import torch` itself takes.
#
# Seen:
#   after import torch: torch._dynamo False, sympy False
#   after torch.optim.SGD: torch._dynamo True, sympy True, more than 500 modules came
#   its time is more than a quarter of that of import torch
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.3.5
"$folder/venv/bin/python" - <<'PYTHON' | tee "$folder/seen"
import sys
import time

start = time.process_time()
import torch

imported = time.process_time() - start
before = len(sys.modules)
names = ("torch._dynamo", "sympy")
print("after import torch:", ", ".join(f"{name} {name in sys.modules}" for name in names))
start = time.process_time()
torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
made = time.process_time() - start
found = ", ".join(f"{name} {name in sys.modules}" for name in names)
many = "more than 500" if len(sys.modules) - before > 500 else "fewer than 500"
print(f"after torch.optim.SGD: {found}, {many} modules came")
print("its time is", "more" if made > imported / 4 else "less", "than a quarter of that of import torch")
PYTHON
diff "$folder/seen" - <<'SEEN'
after import torch: torch._dynamo False, sympy False
after torch.optim.SGD: torch._dynamo True, sympy True, more than 500 modules came
its time is more than a quarter of that of import torch
SEEN
