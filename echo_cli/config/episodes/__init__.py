"""Sections of a config about what an episode plays: its tasks and its reward."""
