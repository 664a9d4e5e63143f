"""Formats of other tools' traces: one module per name in `importing.FORMATS`, and the parsers that they share."""
