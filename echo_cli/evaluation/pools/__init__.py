"""Frozen pools of a run: read or replayed, joined over environments, and built for other commands."""
