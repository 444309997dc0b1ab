#!/usr/bin/env bash
# typst 0.15.2 (PyPI), whose bibliography is made by hayagriva: BibTeX's "and others", which every
# BibTeX style sets as "et al.", is taken for an author called "others". The style "ieee" prints
# "and others" and "apa" "& others". Files of references from Google Scholar and DBLP contain it.
# It is well only where the style shortens the list before it comes to that name.
#
# Output seen:
#   ieee: [1] T. Brown and others, "Language Models are Few-Shot Learners, " 2020.
#   apa: (Brown & others, 2020) ... Brown, T., & others. (2020,). Language Models are ...
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
. venv/bin/activate
pip install -q typst==0.15.2 pypdf==6.2.0

cat > works.bib <<'P'
@inproceedings{brown2020,
  title = {Language Models are Few-Shot Learners},
  author = {Brown, Tom and others},
  year = {2020},
}
P
cat > show.py <<'P'
from pathlib import Path

import typst
from pypdf import PdfReader

for style, expected in (("ieee", "Brown and others"), ("apa", "& others")):
    Path("page.typ").write_text(f'@brown2020 #bibliography("works.bib", style: "{style}")')
    typst.compile("page.typ", output="page.pdf")
    text = " ".join(PdfReader("page.pdf").pages[0].extract_text().split())
    print(f"{style}: {text}")
    assert expected in text, "changed"
    assert "et al" not in text.partition("Bibliography")[2], "changed"
P
python show.py
