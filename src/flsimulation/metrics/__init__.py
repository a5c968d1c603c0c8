"""Prometheus metrics of a run, its clients and its containers."""
