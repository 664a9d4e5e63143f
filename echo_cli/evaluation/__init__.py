"""Held-out evaluation of checkpoints and models on pools and tasks."""
