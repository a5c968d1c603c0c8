"""Runs on a Flower SuperLink, controlled from this process."""
