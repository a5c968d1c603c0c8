"""Clients' training with a guarantee for each of their examples: DP-SGD."""
