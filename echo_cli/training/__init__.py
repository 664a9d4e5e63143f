"""Training: loop, session, resuming, and collapse alarms."""
