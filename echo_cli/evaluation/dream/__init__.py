"""Free-running replies: a policy answers commands in the environment's place."""
