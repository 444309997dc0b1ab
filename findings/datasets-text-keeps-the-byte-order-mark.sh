#!/usr/bin/env bash
# datasets 5.2.0: of its loaders of local files, "csv" and "json" drop the byte order mark of UTF-8,
# which editors on Windows write, and "text" keeps it: it is the first character of the first text.
# With encoding="utf-8-sig" it goes.
#
# Output seen:
#   text: ['\ufeffone', 'two']
#   csv:  ['one', 'two']
#   json: ['one', 'two']
#   text, utf-8-sig: ['one', 'two']
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
. venv/bin/activate
pip install -q datasets==5.2.0 pandas==3.1.1 pyarrow==26.0.1

cat > show.py <<'P'
import codecs
from pathlib import Path

import datasets

datasets.disable_progress_bars()
contents = {
    "text": b"one\ntwo\n",
    "csv": b"text\none\ntwo\n",
    "json": b'{"text": "one"}\n{"text": "two"}\n',
}


def load(kind, **options):
    return datasets.load_dataset(kind, data_files=kind, split="train", **options)["text"][:]


found = {}
for kind, content in contents.items():
    Path(kind).write_bytes(codecs.BOM_UTF8 + content)
    found[kind] = load(kind)
    print(f"{kind + ':':5}", ascii(found[kind]))
signed = load("text", encoding="utf-8-sig")
print("text, utf-8-sig:", ascii(signed))
assert found == {"text": ["\ufeffone", "two"], "csv": ["one", "two"], "json": ["one", "two"]}
assert signed == ["one", "two"], "changed"
P
HF_HOME="$folder/home" HF_HUB_OFFLINE=1 python show.py
