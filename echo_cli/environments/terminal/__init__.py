"""Folders of terminal tasks: reading them, a real shell for each episode, and their verifiers."""
