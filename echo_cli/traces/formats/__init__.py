"""Traces of others: one module for each format, found by `importer.FORMATS`."""
