"""Training data. sources.py opens a text as documents (readers.py, snapshots.py, hub.py,
python_docs.py); prepare.py tokenises it once, whole or in parts, into shards with a manifest;
batches.py serves shuffled windows of them. README.md has the formats, and what a text means.
"""
