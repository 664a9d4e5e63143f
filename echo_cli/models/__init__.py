"""Models: architectures, tokenizers, renderers, samplers and the policy."""
