"""Differential privacy: transforms of updates, and the accountant of what they cost."""
