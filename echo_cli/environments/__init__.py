"""Environments, from tasks and actions to the text that comes back."""
