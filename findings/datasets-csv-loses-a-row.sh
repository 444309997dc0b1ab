#!/usr/bin/env bash
# datasets 5.2.0 with pandas 3.1.1: a data set of one column that to_csv writes comes back from the
# loader "csv" with fewer rows. A text of spaces alone is written without quotation marks, and a line
# of spaces counts as blank for pandas' read_csv, which leaves it out (skip_blank_lines). An empty
# text and a missing one are written as "" and come back, both as None. to_json keeps all of them.
# WikiText's blank lines are one space: a file of it goes through CSV only with a second column.
#
# Output seen:
#   written: 4 rows ['a', ' ', '', 'b']
#   csv:     3 rows ['a', None, 'b']
#   json:    4 rows ['a', ' ', '', 'b']
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
. venv/bin/activate
pip install -q datasets==5.2.0 pandas==3.1.1 pyarrow==26.0.1

cat > show.py <<'P'
import datasets

datasets.disable_progress_bars()
rows = ["a", " ", "", "b"]
data = datasets.Dataset.from_dict({"text": rows})
data.to_csv("rows.csv")
data.to_json("rows.jsonl")
print("written:", len(rows), "rows", rows)
found = {}
for kind, file in (("csv", "rows.csv"), ("json", "rows.jsonl")):
    found[kind] = datasets.load_dataset(kind, data_files=file, split="train")["text"][:]
    print(f"{kind + ':':8}", len(found[kind]), "rows", found[kind])
assert found == {"csv": ["a", None, "b"], "json": rows}, "changed"
P
HF_HOME="$folder/home" HF_HUB_OFFLINE=1 python show.py
