"""`python -m gpt2.assignment`: from a text to a finished piece of work, by one command.

plan.py        which sizes, and how many tokens of training fit the time
picture.py     a picture of the demo page, by a browser without a window
readme.py      the README.md of what was made
notebook.py    a Colab notebook that does the same
"""
