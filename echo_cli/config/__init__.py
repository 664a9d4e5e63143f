"""The config of a run: its schema, its presets, and YAML files with overrides."""
