"""`python -m gpt2.compare_sizes`: models of several sizes, trained on the same tokens and compared.

plan.py        which runs, and whether they can be made
run.py         a run in a process of its own, whose peak memory is measured
results.py     what the runs came to
report.py      as Markdown and JSON
plots.py       loss against tokens and against compute
"""
