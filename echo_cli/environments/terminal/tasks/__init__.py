"""Task folders: what they hold, what they need, their solutions, and the files of an episode."""
