#!/usr/bin/env bash
# torch 2.13.0 for CPUs, Linux: its wheel brings libgomp, whose threads spin for some milliseconds where
# they wait for each other. With two threads on two cores and one other process that is busy, the
# threads spin on the cores that they and the other need, and small operations become many times
# slower than with OMP_WAIT_POLICY=passive, with which threads that wait sleep. So a laptop that
# computes and does anything else loses most of its speed by default, and an environment variable, read
# when torch is imported, gives it back.
#
# Output seen, on a machine that had still more to do (9.3 and 92.6 times at other moments):
#   default 42 operations/s, passive 10,989: 261.7 times as many
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
. venv/bin/activate
pip install -q torch==2.13.0 numpy==2.3.5

cat > rate.py <<'P'
import time

import torch

torch.set_num_threads(2)
x = torch.zeros(1 << 17)
x.add_(1)
began, count = time.perf_counter(), 0
while time.perf_counter() - began < 1.5:
    x.add_(1)
    count += 1
print(count / 1.5)
P
cat > show.py <<'P'
import os
import statistics
import subprocess
import sys

os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])  # inherited by all that follow
clean = {name: value for name, value in os.environ.items() if "OMP_" not in name}
policies = {"default": {}, "passive": {"OMP_WAIT_POLICY": "passive"}}


rates = {name: [] for name in policies}
with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
    for _ in range(3):
        for name, policy in policies.items():
            done = subprocess.check_output([sys.executable, "rate.py"], env=clean | policy)
            rates[name].append(float(done))
    other.kill()
default, passive = (statistics.median(rates[name]) for name in policies)
ratio = passive / default
print(f"default {default:,.0f} operations/s, passive {passive:,.0f}: {ratio:.1f} times as many")
assert ratio > 2, "changed: spinning threads give way to a busy process"
P
python show.py
