"""Traces of others: one module for each of `importing.FORMATS`, and what some of them read."""
