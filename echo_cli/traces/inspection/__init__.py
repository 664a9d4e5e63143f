"""What recorded episodes hold: counts by role, boundaries, outputs and duplicates."""
