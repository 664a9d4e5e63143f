"""A run's config: schema, presets, and loading from YAML files with overrides."""
