"""Run directories: files written by a run, and their readers."""
