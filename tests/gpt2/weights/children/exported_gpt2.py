"""A child process of test_export: an exported folder as transformers reads it.

    python exported_gpt2.py FOLDER TEXTS OUT

TEXTS is a JSON list. It writes OUT/logits.safetensors (float32 and float64, for the ids in
FOLDER/../ids.safetensors), OUT/answers.json, and the tokenizer anew into OUT/saved. The logits,
ids and greedy text of FOLDER/../gguf-* are in both files too, by these names.
"""

import json
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

folder, texts, out = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()), Path(sys.argv[3])
model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
tokenizer = AutoTokenizer.from_pretrained(folder)
tokenizer.save_pretrained(out / "saved")
ids = load_file(folder.parent / "ids.safetensors")["ids"]
stored = str(model.dtype)
model = model.float()
logits = {"fp32": model(ids).logits, "fp64": model.double()(ids).logits}
logits = {name: value.detach().contiguous() for name, value in logits.items()}
gguf = {}
for path in folder.parent.glob("gguf-*/model.gguf"):
    file = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    # Of GPT-2's numbers in GGUF, transformers leaves out the context and the width of the MLP.
    model = AutoModelForCausalLM.from_pretrained(
        **file, config=AutoConfig.from_pretrained(path.parent), dtype="float32"
    )
    own = AutoTokenizer.from_pretrained(**file)
    logits[path.parent.name] = model(ids).logits.detach()
    prompt = own("Once upon", return_tensors="pt")
    written = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0]
    gguf[path.parent.name] = [own.decode(written), [own(text)["input_ids"] for text in texts]]
save_file(logits, out / "logits.safetensors")
answers = {
    "gguf": gguf,
    "ids": [tokenizer(text)["input_ids"] for text in texts],
    "texts": [tokenizer.decode(tokenizer(text)["input_ids"]) for text in texts],
    "eos": [
        tokenizer.eos_token_id,
        model.generation_config.eos_token_id,
        model.config.eos_token_id,
    ],
    "max length": tokenizer.model_max_length,
    "dtype": stored,
    "tied": model.config.tie_word_embeddings,
    "complaints": {name: sorted(map(str, found)) for name, found in loading.items() if found},
}
(out / "answers.json").write_text(json.dumps(answers))
