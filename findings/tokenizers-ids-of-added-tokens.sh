#!/usr/bin/env bash
# tokenizers 0.23.3 takes no notice of the ids that a tokenizer.json gives to its added tokens. Those
# that are not in the model's vocabulary are numbered anew, from its size on, in the order of the
# list; nothing is said. Where the list is not in the order of its ids, tokens change places. Where
# the vocabulary leaves out id 0 for a token that only the list has, as a vocabulary that counts from
# 1 does, that token gets an id that another one has: two texts have the same ids, and decoding gives
# the added token for both.
#
# Output seen:
#   listed: <y> 4, <x> 3; given: <y> 3, <x> 4
#   listed: <s> 0; given: <s> 2, the id of 'b'; ids of '<s>ab': [2, 1, 2]; back: '<s> a <s>'
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
. venv/bin/activate
pip install -q tokenizers==0.23.3

cat > show.py <<'P'
import json

from tokenizers import Tokenizer, models


def load(vocab, added):
    content = json.loads(Tokenizer(models.BPE(vocab=vocab, merges=[])).to_str())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content["added_tokens"] = [
        {"id": id, "content": token, **flags, "special": True} for token, id in added
    ]
    return Tokenizer.from_str(json.dumps(content))


swapped = load({"a": 0, "b": 1, "c": 2}, [("<y>", 4), ("<x>", 3)])
given = [swapped.token_to_id(token) for token in ("<y>", "<x>")]
print(f"listed: <y> 4, <x> 3; given: <y> {given[0]}, <x> {given[1]}")
first = load({"a": 1, "b": 2}, [("<s>", 0)])
number, ids = first.token_to_id("<s>"), first.encode("<s>ab").ids
back = first.decode(ids, skip_special_tokens=False)
print(
    f"listed: <s> 0; given: <s> {number}, the id of 'b'; ids of '<s>ab': {ids}; back: {back!r}"
)
assert given == [3, 4], "changed"
assert (number, ids, back) == (2, [2, 1, 2], "<s> a <s>"), "changed"
P
python show.py 2>&1
