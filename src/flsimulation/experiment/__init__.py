"""The experiment file: the frozen, validated description of a run."""

from flsimulation.experiment.flat import flatten, unflatten
from flsimulation.experiment.load import (
    dump_toml,
    experiment_of,
    explain,
    load_experiment,
    resolve_paths,
)
from flsimulation.experiment.spec import Experiment

__all__ = [
    "Experiment",
    "dump_toml",
    "experiment_of",
    "explain",
    "flatten",
    "load_experiment",
    "resolve_paths",
    "unflatten",
]
