"""``python -m flsimulation`` is ``flsim``."""

from flsimulation.cli.main import program

program()
