"""OpenEnv environments: a client and a source for each kind that a config can name."""
