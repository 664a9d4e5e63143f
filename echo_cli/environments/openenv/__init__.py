"""Where environments come from: one client and source for each kind that a config names."""
