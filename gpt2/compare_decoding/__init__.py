"""`python -m gpt2.compare_decoding`: strategies of decoding beside human text.

text_metrics.py    diversity, repetition and copying of texts
measures.py        all measures of continuations, and findings stated from them
plot.py            fluency against diversity
report.py          results as Markdown and JSON
"""
