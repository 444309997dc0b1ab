"""The tokenizer: byte-level BPE as GPT-2 has it, trained, saved, loaded."""

from gpt2.tokenizer.tokenizer import Tokenizer

__all__ = ["Tokenizer"]
