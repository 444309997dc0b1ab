#!/usr/bin/env bash
# safetensors 0.8.0 with NumPy 2.4.6: safetensors.numpy.save_file and save write the memory of an array as
# it lies, and in the header the shape of the array. An array in another order than C's, such as
# weight.T, which is how GPT-2's Conv1D weights become those of linear layers, comes back with its right
# shape and with its numbers in other places. Nothing is said; the docstring asks for contiguous arrays,
# and weight.T calls itself contiguous, in Fortran's order. safetensors.torch refuses such a tensor, and
# 0.7.0 wrote it rightly, so that a converter that worked ruins weights after an update.
#
# Output seen:
#   safetensors 0.7.0: (3, 2) back as [[0, 3], [1, 4], [2, 5]], equal True
#   safetensors 0.8.0: (3, 2) back as [[0, 1], [2, 3], [4, 5]], equal False
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
. venv/bin/activate
pip install -q numpy==2.4.6

cat > show.py <<'P'
import sys
from importlib.metadata import version

import numpy as np
from safetensors.numpy import load, load_file, save, save_file

transposed = np.arange(6, dtype=np.float32).reshape(2, 3).T
assert transposed.flags.f_contiguous
save_file({"weight": transposed}, "model.safetensors")
back = load_file("model.safetensors")["weight"]
equal = bool((back == transposed).all())
print(
    f"safetensors {version('safetensors')}: {back.shape} back as "
    f"{back.astype(int).tolist()}, equal {equal}"
)
assert (load(save({"weight": transposed}))["weight"] == back).all()
assert back.shape == transposed.shape and equal == (sys.argv[1] == "right"), "changed"
P
pip install -q safetensors==0.7.0
python show.py right
pip install -q safetensors==0.8.0
python show.py wrong
