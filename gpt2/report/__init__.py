"""`python -m gpt2.report`: what was built, trained and found, as a PDF of at most five pages.

report.typ        the report: its prose, equations, tables and style
references.bib    the works that it cites
sources.py, result_files.py    read run folders and the files of other tools
samples.py        counts in a sample
findings.py       strengths, weaknesses, improvements, each stated from its number
facts.py          all facts as JSON, for report.typ
figures.py        plots, as SVG
pdf.py            typesets the facts
"""
