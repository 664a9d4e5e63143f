"""Sampling at an inference server that speaks vLLM's or SGLang's protocol."""
