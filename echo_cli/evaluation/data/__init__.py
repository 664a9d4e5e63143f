"""Figures of data before anything is trained on it."""
