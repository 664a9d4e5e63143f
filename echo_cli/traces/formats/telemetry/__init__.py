"""Telemetry: calls of models as observability tools record them, each with the conversation so far."""
