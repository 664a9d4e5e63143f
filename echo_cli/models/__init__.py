"""Model architectures that ship with echo-cli."""
