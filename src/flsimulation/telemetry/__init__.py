"""Telemetry: what sinks make of a run's events."""
