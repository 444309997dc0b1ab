"""`python -m gpt2.report`: what was built, trained and found, as a PDF of at most five pages.

sources.py, result_files.py    what run folders and the files of other tools say
formulas.py, references.py     the equations of the options that a run uses; the works it names
samples.py                     what can be counted in a sample
findings.py                    strengths, weaknesses, improvements, each from its number
figures.py                     plots, as SVG
content.py                     all of it as one dict of sections; decoding.py and comparisons.py
                               make the blocks of some of them
pdf.py, report.typ             the dict as PDF
markdown.py                    the dict as Markdown
"""
