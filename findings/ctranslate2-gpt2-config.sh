#!/usr/bin/env bash
# ctranslate2 4.8.5 with transformers 5.24.0: the converter of GPT-2 leaves out three entries of
# config.json that change what the model computes, and says nothing: layer_norm_epsilon,
# scale_attn_weights and scale_attn_by_inverse_layer_idx. The converted model runs and gives other
# logits. n_inner, the activation and an untied head, which are other entries that few models change, are
# taken over. OpenAI's own weights have the defaults; models of other trainers need not.
#
# Output seen:
#   defaults: largest difference of a logit 6e-07
#   {'n_inner': 100}: 6e-07
#   {'layer_norm_epsilon': 0.1}: 1e+00
#   {'scale_attn_weights': False}: 4e-01
#   {'scale_attn_by_inverse_layer_idx': True}: 2e-02
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
. venv/bin/activate
pip install -q torch==2.13.0 transformers==5.24.0 ctranslate2==4.8.5

cat > show.py <<'P'
import ctranslate2
import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

vocabulary = {"<|endoftext|>": 0}
for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
    vocabulary[letter] = len(vocabulary)
plain = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
plain.decoder = decoders.ByteLevel()
end = "<|endoftext|>"
tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=plain, bos_token=end, eos_token=end, unk_token=end
)
ids = tokenizer("hello world")["input_ids"]


def difference(number, **entries):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=2, n_head=2, n_embd=64, vocab_size=len(vocabulary), n_positions=32,
        bos_token_id=0, eos_token_id=0, initializer_range=0.05, **entries
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    model.save_pretrained(f"model{number}")
    tokenizer.save_pretrained(f"model{number}")
    converter = ctranslate2.converters.TransformersConverter(f"model{number}")
    converter.convert(f"converted{number}")
    tokens = [tokenizer.convert_ids_to_tokens(ids)]
    got = np.array(ctranslate2.Generator(f"converted{number}").forward_batch(tokens))
    expected = model(torch.tensor([ids])).logits.detach().numpy()
    return float(np.abs(got - expected).max())


taken = [difference(0), difference(1, n_inner=100)]
print(f"defaults: largest difference of a logit {taken[0]:.0e}")
print(f"{{'n_inner': 100}}: {taken[1]:.0e}")
left_out = []
for i, (name, value) in enumerate(
    {
        "layer_norm_epsilon": 0.1,
        "scale_attn_weights": False,
        "scale_attn_by_inverse_layer_idx": True,
    }.items()
):
    left_out.append(difference(2 + i, **{name: value}))
    print(f"{{{name!r}: {value}}}: {left_out[-1]:.0e}")
assert max(taken) < 1e-5, "changed"
assert min(left_out) > 1e-3, "changed"
P
HF_HUB_OFFLINE=1 python show.py 2> log || { cat log; exit 1; }
