"""A deterministic read-only terminal over a generated file system: OpenEnv-shaped, standard library only.

`toy_terminal_env.server` and `toy_terminal_env.client` speak OpenEnv's wire protocol and need the `openenv` package.
"""

__version__ = "0.1.0"
