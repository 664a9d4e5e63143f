"""Hugging Face causal language models with the interface of `language_model`."""
