#!/usr/bin/env bash
# transformers 5.24.0: a GPT-2 with attention "sdpa", called with output_attentions=True, gives an
# empty tuple of attention weights: no error, no warning, no log line. The same wish in its configuration,
# config.output_attentions = True, is a ValueError that names "eager" as the remedy.
# (In 4.57.1 the call gives a tuple of None, one a layer, in silence too.)
#
# Output seen:
#   eager: 2 of 2 layers, 0 warnings, 0 log lines
#   sdpa: 0 of 2 layers, 0 warnings, 0 log lines
#   in the configuration: ValueError
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
. venv/bin/activate
pip install -q torch==2.13.0 transformers==5.24.0

cat > show.py <<'P'
import logging
import warnings

import torch
import transformers

config = transformers.GPT2Config(
    n_layer=2, n_head=2, n_embd=16, vocab_size=30, n_positions=16, bos_token_id=0, eos_token_id=0
)
model = transformers.GPT2LMHeadModel(config).eval()
lines = []
handler = logging.Handler()
handler.emit = lines.append
logging.getLogger("transformers").addHandler(handler)
found = {}
for attention in ("eager", "sdpa"):
    model.set_attn_implementation(attention)
    lines.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        weights = model(torch.arange(5)[None], output_attentions=True).attentions
    found[attention] = (len(weights), len(caught), len(lines))
    print(
        f"{attention}: {len(weights)} of 2 layers, {len(caught)} warnings, {len(lines)} log lines"
    )
try:
    model.config.output_attentions = True
    refused = "accepted"
except ValueError as error:
    refused = type(error).__name__
    assert "'eager'" in str(error)
print("in the configuration:", refused)
assert found == {"eager": (2, 0, 0), "sdpa": (0, 0, 0)}, "changed"
assert refused == "ValueError", "changed"
P
HF_HUB_OFFLINE=1 python show.py
