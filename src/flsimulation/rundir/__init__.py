"""The run directory: one format, written and read here only."""
