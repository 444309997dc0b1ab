#!/usr/bin/env bash
# torchao 0.18.0 with transformers 5.24.0: quantize_(model, Int8WeightOnlyConfig()) makes a GPT-2 larger.
# It takes modules that are nn.Linear; the products of transformers' GPT-2 are Conv1D, all but the head,
# and stay in float32, without a warning. The head shares its weight with the token embedding: it gets
# int8 weights of its own, and the embedding stays. So every weight is kept in float32, and a quarter
# of the embedding is added. The logits change a little, as if the model had been quantized.
#
# Output seen:
#   before: 5,715,968 bytes; after: 6,771,968 bytes
#   in int8: ['lm_head']; in float32: 8 Conv1D
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
. venv/bin/activate
pip install -q torch==2.13.0 transformers==5.24.0 torchao==0.18.0

cat > show.py <<'P'
import warnings

import torch
import transformers
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from torchao.quantization import Int8Tensor

config = transformers.GPT2Config(
    n_layer=2, n_head=4, n_embd=128, vocab_size=8000, n_positions=64, bos_token_id=0, eos_token_id=0
)
model = transformers.GPT2LMHeadModel(config).eval()
ids = torch.arange(20)[None]
exact = model(ids).logits


def stored():
    tensors = []
    for parameter in model.parameters():
        if isinstance(parameter.data, Int8Tensor):
            tensors += [parameter.data.qdata, parameter.data.scale]
        else:
            tensors.append(parameter)
    return sum(x.numel() * x.element_size() for x in tensors)


before = stored()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    quantize_(model, Int8WeightOnlyConfig())
said = [str(x.message) for x in caught if "Conv1D" in str(x.message)]
after = stored()
print(f"before: {before:,} bytes; after: {after:,} bytes")
weights = {
    name: module
    for name, module in model.named_modules()
    if isinstance(module, torch.nn.Linear | transformers.pytorch_utils.Conv1D)
}
small = [name for name, x in weights.items() if isinstance(x.weight.data, Int8Tensor)]
plain = [x for x in weights.values() if x.weight.dtype == torch.float32 and type(x).__name__ == "Conv1D"]
print(f"in int8: {small}; in float32: {len(plain)} Conv1D")
assert after > before and small == ["lm_head"] and len(plain) == 8 and not said, "changed"
assert not torch.equal(model(ids).logits, exact), "changed"
P
HF_HUB_OFFLINE=1 python show.py 2> log || { cat log; exit 1; }
