"""A federation on a Ray cluster."""
