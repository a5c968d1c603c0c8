"""What happens to a batch between the data set and a module's step."""

from __future__ import annotations

from dataclasses import dataclass

from flsimulation.data.dataset import Dataset
from flsimulation.errors import DataError
from flsimulation.experiment import Experiment
from flsimulation.training.form import PAIR, Form


@dataclass(frozen=True, eq=False)
class Preparation:
    """How batches are prepared; the same for all clients of an experiment."""

    form: Form = PAIR
    """What a module's steps receive."""


PLAIN = Preparation()
"""Pairs of inputs and labels, as the data set has them."""


def preparation(experiment: Experiment, dataset: Dataset) -> Preparation:
    """How an experiment's batches are prepared. Raises `DataError`."""
    spec = experiment.data
    form = Form(spec.batch, spec.image_column, spec.label_column)
    names = [form.inputs] if not isinstance(dataset.x_train, dict) else [*dataset.x_train]
    if form.kind == "dict" and form.labels in names:
        raise DataError(
            f"data.label-column {form.labels!r} is also the name of an input, so that a batch "
            f"cannot be a dict; name it otherwise, or set data.batch = 'pair'"
        )
    return Preparation(form)
