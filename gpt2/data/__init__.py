"""Training data. sources.py opens a text (readers.py, hub.py, python_docs.py) as documents;
prepare.py tokenises it once, whole or in parts, into shards with a manifest; batches.py serves
shuffled windows of them.
"""
