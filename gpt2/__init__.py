"""GPT-2 class language models from scratch: tokenizer, data, model, training, use."""
