"""`python -m gpt2.compare_decoding`: strategies of decoding beside what people wrote.

measures.py    fluency, diversity, repetition and copying of continuations
report.py      as Markdown, JSON and a plot
"""
