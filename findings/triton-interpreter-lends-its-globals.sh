#!/usr/bin/env bash
# triton 3.7.1, TRITON_INTERPRET=1: the first launch of a kernel copies every global of
# triton/runtime/interpreter.py (np, ast, inspect, functools, ...) into the globals of the module that
# defines the kernel, where the module has no global of that name. So a kernel, or a plain function
# beside it, that forgot an import works after the first interpreted launch and fails when compiled:
# the interpreter cannot be trusted to find a missing import.
#
# Output seen:
#   before: NameError name 'np' is not defined
#   after one interpreted launch: 7.0, 59 new globals
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
. venv/bin/activate
pip install -q torch==2.13.0 triton==3.7.1 numpy==2.3.5

cat > forgetful.py <<'P'
import triton
import triton.language as tl


@triton.jit
def double(x_ptr):
    tl.store(x_ptr, 2 * tl.load(x_ptr))


def seven():
    return np.float64(7)  # noqa: F821 (numpy is not imported here)
P
cat > show.py <<'P'
import forgetful
import torch

try:
    forgetful.seven()
    raise SystemExit("changed: np was there before any launch")
except NameError as error:
    print("before: NameError", error)
names = set(vars(forgetful))
x = torch.ones(1)
forgetful.double[(1,)](x)
assert x.item() == 2
new = len(set(vars(forgetful)) - names)
print(f"after one interpreted launch: {forgetful.seven()}, {new} new globals")
assert new == 59, "changed: another number of globals is copied"
P
TRITON_INTERPRET=1 python show.py
