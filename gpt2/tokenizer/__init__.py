"""The tokenizer: byte-level BPE as in GPT-2. tokenizer.py encodes and decodes, bpe.py learns the
merges of words that pretokens.py counts, vocabulary.py reads and writes files."""

from gpt2.tokenizer.tokenizer import Tokenizer

__all__ = ["Tokenizer"]
