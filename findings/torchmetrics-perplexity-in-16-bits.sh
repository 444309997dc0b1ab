#!/usr/bin/env bash
# torchmetrics 1.9.0 with PyTorch 2.13.0: torchmetrics.text.Perplexity takes the softmax, and of it the
# logarithm, in the dtype of the logits. In float16 a probability below 6e-8 is zero: one token with a
# loss of more than 17 nats among thousands, which a real test set holds, makes the perplexity infinite.
# In bfloat16 each probability is rounded before the logarithm. The same logits, converted to float32
# first, give the right figure. There is no warning, and the result is a float32 tensor either way.
#
# Output seen, of 4,096 tokens, of which one has a loss of 17.9 nats:
#   torch.float32: perplexity 5.1003; by cross-entropy of the same logits in float32 5.1003
#   torch.float16: perplexity inf; by cross-entropy of the same logits in float32 5.1003
#   torch.bfloat16: perplexity 5.1182; by cross-entropy of the same logits in float32 5.1004
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
. venv/bin/activate
pip install -q torch==2.13.0 numpy torchmetrics==1.9.0

cat > show.py <<'P'
import torch
import torch.nn.functional as F
from torchmetrics.text import Perplexity

torch.manual_seed(0)
targets = torch.randint(1000, (1, 4096))
logits = torch.randn(1, 4096, 1000)
logits.scatter_(2, targets[..., None], 6.0)
logits[0, 0] = 0
logits[0, 0, targets[0, 0]] = -11.0
off = {}
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    x = logits.to(dtype)
    metric = Perplexity()
    metric.update(x, targets)
    found, right = metric.compute(), F.cross_entropy(x[0].float(), targets[0]).exp()
    print(
        f"{dtype}: perplexity {found:.4f}; "
        f"by cross-entropy of the same logits in float32 {right:.4f}"
    )
    off[dtype] = float(abs(found / right - 1))
assert off[torch.float32] < 1e-5, "changed"
assert off[torch.float16] == float("inf"), "changed"
assert off[torch.bfloat16] > 1e-3, "changed"
P
python show.py
