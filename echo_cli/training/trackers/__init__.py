"""One module per tracker, imported only in the tracker's own process, `host.py`."""
