"""Redaction: secrets, and what identifies a person, are replaced in traces."""
