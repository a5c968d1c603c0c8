"""What happens to a batch between the data set and a module's step."""

from __future__ import annotations

from dataclasses import dataclass

from flsimulation.data.dataset import Dataset
from flsimulation.errors import DataError
from flsimulation.experiment import Experiment
from flsimulation.experiment.spec import Data
from flsimulation.models import MODELS
from flsimulation.training.form import PAIR, Form
from flsimulation.training.transforms import Transform

_TRIED = 8  # examples with which a transform is called before the run


@dataclass(frozen=True, eq=False)
class Preparation:
    """How batches are prepared; the same for all clients of an experiment."""

    form: Form = PAIR
    """What a module's steps receive."""
    transform: Transform | None = None
    """Changes training batches."""
    evaluation: Transform | None = None
    """Changes all other batches."""


PLAIN = Preparation()
"""Pairs of inputs and labels, as the data set has them."""


def preparation(experiment: Experiment, dataset: Dataset) -> Preparation:
    """How an experiment's batches are prepared. Raises `DataError`."""
    spec = experiment.data
    form = Form(spec.batch, spec.image_column, spec.label_column)
    names = [form.inputs] if not isinstance(dataset.x_train, dict) else [*dataset.x_train]
    if form.kind == "dict" and experiment.model.class_ in MODELS:
        raise DataError(
            f"data.batch is 'dict', but model.class {experiment.model.class_!r} takes pairs; set "
            f"data.batch = 'pair', or name a class of your own"
        )
    if form.kind == "dict" and form.labels in names:
        raise DataError(
            f"data.label-column {form.labels!r} is also the name of an input, so that a batch "
            f"cannot be a dict; name it otherwise, or set data.batch = 'pair'"
        )
    transform, evaluation = (
        _transform(key, reference, spec, training=training)
        for key, reference, training in (
            ("data.transform", spec.transform, True),
            ("data.evaluation-transform", spec.evaluation_transform, False),
        )
    )
    for own in (transform, evaluation):
        if (
            own is not None and not dataset.is_placeholder
        ):  # a mistake is one line now, and not one for each client
            own.tried(dataset.x_train, dataset.y_train, min(experiment.train.batch_size, _TRIED))
    return Preparation(form, transform, evaluation)


def _transform(key: str, reference: str, spec: Data, *, training: bool) -> Transform | None:
    if not reference:
        return None
    per_example = spec.transform_per == "example"
    return Transform(key, reference, training=training, per_example=per_example)
