"""Rollouts: a policy or a script plays episodes in an environment."""
