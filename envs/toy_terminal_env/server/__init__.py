"""The toy terminal as an OpenEnv server: `python -m toy_terminal_env.server`. Needs the `openenv` package."""
