"""A child process of test_init_from: an exported model fine-tuned and saved by transformers.

    python fine_tuned_gpt2.py FOLDER OUT

Its tokenizer pads and truncates and gets a special token; the embedding grows to a multiple of 64;
the weights take a step and are saved in shards. OUT/expected.safetensors holds ids, their logits,
and the ids of a text with special tokens.
"""

import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, out = sys.argv[1:]
model, tokenizer = (
    AutoModelForCausalLM.from_pretrained(folder),
    AutoTokenizer.from_pretrained(folder),
)
tokenizer.pad_token = tokenizer.eos_token
tokenizer.add_tokens(["<|user|>"], special_tokens=True)
model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)
texts = ["Story 3.", "<|user|>Story 4. The cat saw"]
batch = tokenizer(texts, padding=True, truncation=True, max_length=16, return_tensors="pt")
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model(**batch, labels=batch["input_ids"]).loss.backward()
optimizer.step()
model.eval()
model.save_pretrained(out, max_shard_size="20KB")
tokenizer.save_pretrained(out)
expected = {
    "ids": batch["input_ids"],
    "logits": model(batch["input_ids"]).logits.detach().contiguous(),
    "text": tokenizer("<|user|>Story 7. <|endoftext|>", return_tensors="pt")["input_ids"][0],
}
save_file(expected, f"{out}/expected.safetensors")
