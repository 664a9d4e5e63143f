"""Rollouts: episodes played in an environment by a policy or a script."""
