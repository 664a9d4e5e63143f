"""Terminals: recordings of a terminal's bytes."""
