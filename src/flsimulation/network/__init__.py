"""A federation over a Flower SuperLink: what its containers run, and the command that drives it."""
