"""echo-cli: train on what the environment writes back, too."""
