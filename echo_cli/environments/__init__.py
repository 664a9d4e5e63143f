"""Environments: tasks, actions and the text of observations."""
