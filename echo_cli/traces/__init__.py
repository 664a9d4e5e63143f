"""Traces: recorded episodes, imported, inspected, exported and trained on."""
