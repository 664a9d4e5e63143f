"""Free-running replies: a policy answers commands in place of the environment."""
