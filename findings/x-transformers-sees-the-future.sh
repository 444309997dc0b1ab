#!/usr/bin/env bash
# x-transformers 2.31.10 with PyTorch 2.13.0: a Decoder with attn_orthog_projected_values=True is not causal,
# nor is one with attn_orthog_projected_values_per_head=True. The output of attention is made orthogonal
# to the values with one norm and one product over all positions and features of a text together,
# instead of those of each position, so that every logit, the first one's too, depends on tokens after
# it. No error tells, and the loss that such a model shows is not that of a language model: what it
# computes for a text is not what it computes for the beginning of that text. In this small model, with
# its weights as they are initialised, the difference is far above rounding and below a look.
#
# Output seen, in float64, after the second half of 64 tokens was replaced:
#   without: the first half's logits change by at most 0.0, the first by 0.0
#   orthog_projected_values: the first half's logits change by at most 0.017, the first by 0.005
#   orthog_projected_values_per_head: the first half's logits change by at most 0.017, the first by 0.005
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
. venv/bin/activate
pip install -q torch==2.13.0 numpy==2.4.6 x-transformers==2.31.10

cat > show.py <<'P'
import torch
from x_transformers import Decoder, TransformerWrapper

torch.set_default_dtype(torch.float64)
for name in (None, "orthog_projected_values", "orthog_projected_values_per_head"):
    torch.manual_seed(0)
    layers = Decoder(dim=64, depth=2, heads=2, **({f"attn_{name}": True} if name else {}))
    model = TransformerWrapper(num_tokens=64, max_seq_len=64, attn_layers=layers).eval()
    text = torch.randint(64, (1, 64))
    other = text.clone()
    other[:, 32:] = torch.randint(64, (1, 32))
    with torch.no_grad():
        change = (model(text) - model(other))[:, :32].abs()
    most, first = change.max().item(), change[:, 0].max().item()
    print(
        f"{name or 'without'}: the first half's logits change by at most {round(most, 3)}, "
        f"the first by {round(first, 3)}"
    )
    assert most > 1e-3 and first > 1e-4 if name else most == 0, "changed"
P
python -W ignore show.py
