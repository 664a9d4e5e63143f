"""Training: the loop, its session, resuming, and alarms."""
