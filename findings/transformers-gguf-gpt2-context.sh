#!/usr/bin/env bash
# transformers 5.24.0 with gguf 0.19.0: a GPT-2 in GGUF with another context than 1024 is not loaded.
# The file's gpt2.context_length is read into n_ctx, which no code uses, and n_positions keeps its
# default. gpt2.feed_forward_length, the width of the MLP, is left out in the same way. With the
# configuration given beside the file the weights are read.
#
# Output seen:
#   file: context 256
#   by the file alone: RuntimeError, n_ctx 256, n_positions 1024
#   with its configuration: torch.Size([256, 32])
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
. venv/bin/activate
pip install -q transformers==5.24.0 gguf==0.19.0 accelerate==1.15.0 torch==2.13.0

cat > show.py <<'P'
import gguf
import numpy as np
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

logging.set_verbosity(logging.CRITICAL)
logging.disable_progress_bar()
config = GPT2Config(vocab_size=50, n_positions=256, n_embd=32, n_layer=1, n_head=2)
writer = gguf.GGUFWriter("model.gguf", "gpt2")
writer.add_block_count(1)
writer.add_context_length(256)
writer.add_embedding_length(32)
writer.add_feed_forward_length(128)
writer.add_head_count(2)
writer.add_layer_norm_eps(1e-5)
writer.add_token_list([f"t{i}" for i in range(50)])
names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, 1)
for name, tensor in GPT2LMHeadModel(config).transformer.state_dict().items():
    tensor = tensor.T if "c_" in name and name.endswith("weight") else tensor
    part, _, suffix = name.rpartition(".")
    writer.add_tensor(f"{names[part]}.{suffix}", np.ascontiguousarray(tensor.numpy()))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

print("file: context", gguf.GGUFReader("model.gguf").fields["gpt2.context_length"].contents())
read = AutoConfig.from_pretrained(".", gguf_file="model.gguf")
try:
    AutoModelForCausalLM.from_pretrained(".", gguf_file="model.gguf")
except RuntimeError:
    found = f"RuntimeError, n_ctx {read.n_ctx}, n_positions {read.n_positions}"
print("by the file alone:", found)
model = AutoModelForCausalLM.from_pretrained(".", gguf_file="model.gguf", config=config)
print("with its configuration:", model.transformer.wpe.weight.shape)
assert found.endswith("n_positions 1024"), "changed"
P
python show.py
