#!/usr/bin/env bash
# transformers 5.24.0: of the tokenizer.json of a GPT-2, AutoTokenizer keeps the vocabulary and the
# merges, and puts a normalizer and a pre-tokenizer of its own beside them: none, and GPT-2's pattern. It
# does so where tokenizer_config.json names GPT2Tokenizer or GPT2TokenizerFast, and also where it
# names no class and config.json says "gpt2". Nothing is said; a model that was trained with lower
# case, NFC or another pattern gets other ids than its tokenizer.json gives, and save_pretrained
# writes the changed one. Only with the class PreTrainedTokenizerFast is the file what counts.
#
# Output seen, tokens of one sentence by tokenizer.json, as GPT2Tokenizer, without a class, as
# PreTrainedTokenizerFast:
#   lower case: 12, 15, 15, 12
#   NFC: 10, 14, 14, 10
#   another pattern: 18, 19, 19, 18
#   a space before the first word: 11, 12, 12, 11
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
. venv/bin/activate
pip install -q transformers==5.24.0 tokenizers==0.23.3

cat > show.py <<'P'
import json
import os

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

end = "<|endoftext|>"
plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
runs = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Split(Regex(r"\p{N}{1,2}|\p{L}+|\s+|[^\s\p{L}\p{N}]+"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
)
text = "The cat Ran 123 caf\u00e9 cafe\u0301 2024\n\nnew"
seen = {}
for name, normalizer, split in (
    ("lower case", normalizers.Lowercase(), plain),
    ("NFC", normalizers.NFC(), plain),
    ("another pattern", None, runs),
    ("a space before the first word", None, pre_tokenizers.ByteLevel(add_prefix_space=True)),
):
    tokenizer = Tokenizer(models.BPE())
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        ["The cat Ran 123 456 for 2024. " * 50, "cafe\u0301 caf\u00e9\n\nnew" * 20],
        trainers.BpeTrainer(
            vocab_size=400,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=[end],
            show_progress=False,
        ),
    )
    expected = tokenizer.encode(text).ids
    counts, same = [len(expected)], []
    for kind in ("GPT2Tokenizer", None, "PreTrainedTokenizerFast"):
        folder = f"{name} {kind}"
        os.mkdir(folder)
        tokenizer.save(f"{folder}/tokenizer.json")
        settings = {"eos_token": end, **({"tokenizer_class": kind} if kind else {})}
        with open(f"{folder}/tokenizer_config.json", "w") as file:
            json.dump(settings, file)
        with open(f"{folder}/config.json", "w") as file:
            json.dump({"model_type": "gpt2"}, file)
        ids = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
        counts.append(len(ids))
        same.append(ids == expected)
    print(f"{name}: {', '.join(map(str, counts))}")
    assert same == [False, False, True], "changed"
P
HF_HUB_OFFLINE=1 python show.py 2> log || { cat log; exit 1; }
