"""Inspection of recorded episodes: counts by role, boundaries, outputs and duplicates."""
