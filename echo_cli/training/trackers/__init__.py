"""One module a tracker, each imported in the process of its own that `host.py` is, and nowhere else."""
