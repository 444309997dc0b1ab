#!/usr/bin/env bash
# x-transformers 2.31.10 with PyTorch 2.13.0: a Decoder with shift_tokens generates other tokens with its
# cache of keys and values, which AutoregressiveWrapper.generate uses by default, than without. With it a
# layer is given the newest position alone, so that the features that should come from the position
# before are zeros. A model has a flag, can_cache_kv, by which generate leaves the cache out for features
# that it does not fit, and here it is True. Nothing is said. generate(..., cache_kv=False) gives what the
# model was trained to give.
#
# Output seen, greedy, of 32 tokens after a prompt of 8:
#   without shift_tokens: 32 tokens as without the cache
#   shift_tokens=1, can_cache_kv True: 4 tokens as without the cache
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
. venv/bin/activate
pip install -q torch==2.13.0 numpy==2.4.6 x-transformers==2.31.10

cat > show.py <<'P'
import torch
from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

found = {}
for shift in (0, 1):
    torch.manual_seed(0)
    layers = Decoder(dim=64, depth=2, heads=4, attn_dim_head=32, shift_tokens=shift)
    net = TransformerWrapper(num_tokens=64, max_seq_len=64, attn_layers=layers)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model = AutoregressiveWrapper(net).eval()
    prompt = torch.randint(64, (1, 8))
    cached = model.generate(prompt, 32, temperature=0.0)
    uncached = model.generate(prompt, 32, temperature=0.0, cache_kv=False)
    found[shift] = (cached == uncached).sum().item()
    name = f"shift_tokens=1, can_cache_kv {net.can_cache_kv}" if shift else "without shift_tokens"
    print(f"{name}: {found[shift]} tokens as without the cache")
assert found[0] == 32 and found[1] < 20 and net.can_cache_kv, "changed"
P
python -W ignore show.py
