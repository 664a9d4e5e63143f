"""Hugging Face causal language models behind the model seam."""
