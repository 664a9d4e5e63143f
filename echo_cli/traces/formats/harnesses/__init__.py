"""Harnesses: episodes as agents' harnesses and evaluations record them."""
