"""Sessions: the logs that coding agents keep on a person's machine."""
