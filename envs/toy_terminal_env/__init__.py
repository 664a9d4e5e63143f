"""A deterministic read-only terminal over a generated file system: OpenEnv-shaped, standard library only."""
