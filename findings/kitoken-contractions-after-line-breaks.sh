#!/usr/bin/env bash
# kitoken 0.11.1 and tokie 0.1.4 read a byte-level tokenizer.json of GPT-2's kind and give other tokens
# than tokenizers 0.23.3 where an apostrophe follows white space other than the ordinary space.
# GPT-2's pattern takes 's, 't, 're, 've, 'm, 'll and 'd as pieces wherever they stand; a space before
# hides them, as " '" is a longer piece that begins earlier, but no other white space does. kitoken splits
# as after a space: after line feeds, tabs, carriage returns and no-break spaces; tokie after tabs alone.
# A line of verse or dialogue that begins with 'tis is such a case. The text comes back unharmed, but a
# model trained with one tokenizer is asked with ids that it has not seen in that place.
#
# Output seen:
#   "so:\n'tis": tokenizers ['so', ':', 'Ċ', "'t", 'is']
#       kitoken ['so', ':', 'Ċ', "'", 'tis']
#       tokie ['so', ':', 'Ċ', "'t", 'is']
#   "so\t'tis": tokenizers ['so', 'ĉ', "'t", 'is']
#       kitoken ['so', 'ĉ', "'", 'tis']
#       tokie ['so', 'ĉ', "'", 'tis']
#   "so 'tis": tokenizers ['so', "Ġ'", 'tis']
#       kitoken ['so', "Ġ'", 'tis']
#       tokie ['so', "Ġ'", 'tis']
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
. venv/bin/activate
pip install -q tokenizers==0.23.3 kitoken==0.11.1 tokie==0.1.4

cat > show.py <<'P'
import kitoken
import tokie
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
trainer = trainers.BpeTrainer(
    vocab_size=300,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    special_tokens=["<|endoftext|>"],
    show_progress=False,
)
tokenizer.train_from_iterator(["'tis, 'tis, that's it; it's\n'tis so\n'tis 'tis"] * 20, trainer)
tokenizer.save("tokenizer.json")
others = {
    "kitoken": kitoken.Kitoken.from_tokenizers_file("tokenizer.json").encode,
    "tokie": lambda text, read=tokie.Tokenizer.from_json("tokenizer.json"): read.encode(text).ids,
}
differs = {}
for text in ("so:\n'tis", "so\t'tis", "so\u00a0'tis", "so\r'tis", "so 'tis", "it's"):
    right = tokenizer.encode(text)
    print(f"{text!r}: tokenizers {right.tokens}")
    for name, encode in others.items():
        ids = list(encode(text))
        differs[name, text] = ids != right.ids
        print(f"    {name} {[tokenizer.id_to_token(id) for id in ids]}")
        assert tokenizer.decode(ids) == text, "changed"
wrong = [(name, text) for (name, text), other in differs.items() if other]
assert wrong == [
    ("kitoken", "so:\n'tis"),
    ("kitoken", "so\t'tis"),
    ("tokie", "so\t'tis"),
    ("kitoken", "so\u00a0'tis"),
    ("kitoken", "so\r'tis"),
], wrong
P
python show.py
