"""A federation over a Flower SuperLink, seen from the command that drives it."""
