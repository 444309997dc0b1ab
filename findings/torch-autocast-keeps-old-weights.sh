#!/usr/bin/env bash
# torch 2.13.0: torch.autocast keeps the copies in bfloat16 that it made of float32 parameters until its
# outermost context ends, and does not look whether the parameters have changed. A training loop with
# one context around all of its steps updates the parameters and never sees it: each step has the loss and
# the gradients of the first one, and walks on in that one direction. Nothing fails, as a cast keeps
# nothing for its backward. The parameters put in place for an evaluation in the same context, such as
# an average of them, are not used either. With a context for each step, or cache_enabled=False, all
# is well.
#
# Output seen, losses of one batch:
#   one context a step: [1.85, 1.13, 0.98, 0.92, 0.89], after it 0.86
#   one context around, cache_enabled=False: [1.85, 1.13, 0.98, 0.92, 0.89], after it 0.86
#   one context around: [1.85, 1.85, 1.85, 1.85, 1.85], after it 4.09
#   evaluated in one context: 1.85; parameters set to zero: 1.85; in a new context: 1.30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
. venv/bin/activate
pip install -q torch==2.13.0 numpy==2.4.6

cat > show.py <<'P'
from contextlib import nullcontext

import torch


def start():
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 4)
    return model, torch.randn(8, 4), torch.randn(8, 4)


def autocast(**options):
    return torch.autocast("cpu", dtype=torch.bfloat16, **options)


def loss_of(model, x, y):
    return (model(x).float() - y).square().mean()


def train(outer, inner):
    model, x, y = start()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = []
    with outer:
        for _ in range(5):
            with inner():
                loss = loss_of(model, x, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(round(loss.item(), 2))
    return losses, round(loss_of(model, x, y).item(), 2)


a_step = train(nullcontext(), autocast)
uncached = train(autocast(cache_enabled=False), nullcontext)
around = train(autocast(), nullcontext)
print(f"one context a step: {a_step[0]}, after it {a_step[1]}")
print(f"one context around, cache_enabled=False: {uncached[0]}, after it {uncached[1]}")
print(f"one context around: {around[0]}, after it {around[1]}")

model, x, y = start()
with autocast(), torch.no_grad():
    before = loss_of(model, x, y).item()
    for parameter in model.parameters():
        parameter.zero_()
    zeros = loss_of(model, x, y).item()
with autocast(), torch.no_grad():
    anew = loss_of(model, x, y).item()
print(
    f"evaluated in one context: {before:.2f}; parameters set to zero: {zeros:.2f}; "
    f"in a new context: {anew:.2f}"
)
assert a_step == uncached and a_step[0][-1] < a_step[0][0] / 2, "changed"
assert len(set(around[0])) == 1 and around[1] > 2 * around[0][0], "changed: it sees the updates"
assert zeros == before != anew, "changed: it sees the zeros"
P
python show.py
