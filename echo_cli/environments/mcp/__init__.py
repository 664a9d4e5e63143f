"""Servers of the Model Context Protocol as environments; needs the extra `mcp`."""
