#!/usr/bin/env bash
# mlx-lm 0.32.2 cannot load a GPT-2 that transformers 5.24 saved, although both call it "gpt2". It wants
# "n_ctx" in config.json, which transformers 5 no longer writes (OpenAI's own file has it beside
# n_positions). With that key added, no weight fits: it knows OpenAI's names ("wte.weight") and
# not those that save_pretrained writes ("transformer.wte.weight"). With both changed it gives the logits
# of transformers. So a model that was fine-tuned in transformers is refused, and OpenAI's is not.
#
# Output seen:
#   as saved: TypeError ... missing 1 required positional argument: 'n_ctx'
#   with n_ctx: ValueError Received 28 parameters not in model: 
#   with OpenAI's names too: logits differ by at most 9e-08
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
. venv/bin/activate
pip install -q torch==2.13.0 numpy==2.3.5 transformers==5.24.0 safetensors 'mlx[cpu]==0.32.4' mlx-lm==0.32.2

cat > show.py <<'P'
import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import torch
from mlx_lm.utils import load_model
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

folder = Path("saved")
shape = {"n_layer": 2, "n_head": 2, "n_embd": 32, "vocab_size": 100, "n_positions": 32}
torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0)).eval()
model.save_pretrained(folder)


def refused(what, kind, words):
    try:
        load_model(folder)
    except kind as error:
        message = str(error).splitlines()[0]
        print(f"{what}: {kind.__name__} {message}")
        assert words in message, "changed: another message"
    else:
        raise SystemExit(f"changed: {what} it is loaded")


refused("as saved", TypeError, "'n_ctx'")
config = json.loads((folder / "config.json").read_text())
(folder / "config.json").write_text(json.dumps(config | {"n_ctx": config["n_positions"]}))
refused("with n_ctx", ValueError, "parameters not in model")
weights = load_file(folder / "model.safetensors")
weights = {name.removeprefix("transformer."): value for name, value in weights.items()}
save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
ids = [list(range(20))]
theirs = np.array(load_model(folder)[0](mx.array(ids)).astype(mx.float32))
ours = model(torch.tensor(ids)).logits.detach().numpy()
print(f"with OpenAI's names too: logits differ by at most {np.abs(theirs - ours).max():.0e}")
assert np.abs(theirs - ours).max() < 1e-4
P
HF_HUB_OFFLINE=1 python show.py 2>&1 | grep -v -e "^\[transformers\]" -e "Writing model shards"
