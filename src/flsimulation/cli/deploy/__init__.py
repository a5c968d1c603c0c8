"""The commands for a network of containers."""
