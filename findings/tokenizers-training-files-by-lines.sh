#!/usr/bin/env bash
# tokenizers 0.23.3: Tokenizer.train(files) reads its files line by line, each line with its line feed as a
# text of its own, and train_from_iterator takes a text whole. encode takes a text whole, too. With
# GPT-2's pattern, which puts a line feed and the indentation after it into one piece, no file can
# teach a token that begins with a line feed and goes on, although encode meets such pieces all the
# time. Nothing tells; on Python's own library the vocabulary learned from files needs a tenth more
# tokens for the same text.
#
# Output seen, Python 3.11.7 (another version has another library):
#   files: 191,044 tokens for the held-out modules, 0 tokens of a line feed and more
#   iterator: 174,693 tokens for the held-out modules, 58 tokens of a line feed and more
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
. venv/bin/activate
pip install -q tokenizers==0.23.3

cat > show.py <<'P'
import glob
import sysconfig

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

files = sorted(glob.glob(sysconfig.get_paths()["stdlib"] + "/*.py"))
texts = [open(name, encoding="utf-8", newline="").read() for name in files]
found = {}
for way in ("files", "iterator"):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=8000,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    if way == "files":
        tokenizer.train(files[:150], trainer)
    else:
        tokenizer.train_from_iterator(texts[:150], trainer)
    tokens = sum(len(x.ids) for x in tokenizer.encode_batch(texts[150:]))
    longer = [x for x in tokenizer.get_vocab() if x.startswith("Ċ") and x != "Ċ"]
    found[way] = tokens, len(longer)
    print(
        f"{way}: {tokens:,} tokens for the held-out modules, {len(longer)} tokens of a line feed and more"
    )
assert found["files"][1] == 0 and found["iterator"][1] > 10, "changed"
assert found["files"][0] > 1.03 * found["iterator"][0], "changed"
P
python show.py
