"""A real shell in a temporary folder, as an OpenEnv environment: the worked example of docs/environments.md.

It runs real commands with the rights of its user and is not a security boundary.
"""
