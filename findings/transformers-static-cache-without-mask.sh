#!/usr/bin/env bash
# With a static cache an attention function gets a prompt without a mask, and more keys than queries.
#
# transformers 5.24.0: a function that is registered with AttentionInterface, with sdpa's function
# for masks, is called for a prompt in an empty StaticCache with attention_mask=None, and with the
# keys of the whole cache: 5 queries, 16 keys. Causal then means that query i sees keys 0..i, aligned
# to the upper left, as is_causal of PyTorch's SDPA has it. FlashAttention's convention from 2.1 on,
# by which the last query sees the last key, lets the first query see 11 empty slots, each with a
# weight, and no error tells. The same function gets a real mask for the second part of a prompt in a
# DynamicCache, where the lower right would have been right.
#
# Seen:
#   static cache, prompt of 5: 5 queries, 16 keys, mask None
#   upper left gives the model's own output: True; lower right: False
#   dynamic cache, second part of 5: 5 queries, 10 keys, mask (1, 1, 5, 10)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.24.0 numpy==2.3.5
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee "$folder/seen"
import torch
from transformers import AttentionInterface, AttentionMaskInterface, GPT2Config, GPT2LMHeadModel, StaticCache
from transformers.masking_utils import sdpa_mask

calls, way = [], "upper left"


def attend(module, query, key, value, attention_mask, **kwargs):
    T, S = query.shape[2], key.shape[2]
    calls.append((T, S, attention_mask if attention_mask is None else tuple(attention_mask.shape)))
    seen = attention_mask
    if seen is None:
        first = 0 if way == "upper left" else S - T
        seen = torch.arange(S) <= torch.arange(T)[:, None] + first
    output = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
    return output.transpose(1, 2), None


AttentionInterface.register("recorded", attend)
AttentionMaskInterface.register("recorded", sdpa_mask)
torch.manual_seed(0)
config = GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=50, n_positions=16)
model = GPT2LMHeadModel(config).eval()
ids = torch.arange(1, 11)[None]
with torch.no_grad():
    own = model(ids[:, :5]).logits
    model.set_attn_implementation("recorded")
    same = {}
    for way in ("upper left", "lower right"):
        cache = StaticCache(config, max_cache_len=16)
        same[way] = torch.allclose(own, model(ids[:, :5], past_key_values=cache).logits, atol=1e-5)
    way = "upper left"
    past = model(ids[:, :5]).past_key_values
    model(ids[:, 5:], past_key_values=past)
(T, S, mask), (again, more, second) = calls[0], calls[-1]
print(f"static cache, prompt of 5: {T} queries, {S} keys, mask {mask}")
print(f"upper left gives the model's own output: {same['upper left']}; lower right: {same['lower right']}")
print(f"dynamic cache, second part of 5: {again} queries, {more} keys, mask {second}")
PYTHON
diff "$folder/seen" - <<'SEEN'
static cache, prompt of 5: 5 queries, 16 keys, mask None
upper left gives the model's own output: True; lower right: False
dynamic cache, second part of 5: 5 queries, 10 keys, mask (1, 1, 5, 10)
SEEN
