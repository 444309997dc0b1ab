"""Trained weights from files and from the Hugging Face hub, and back into files."""

from gpt2.weights.pretrained import load_pretrained

__all__ = ["load_pretrained"]
