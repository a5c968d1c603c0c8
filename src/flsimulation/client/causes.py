"""Why a client failed, in words that fit the cause: found once, on the first client that fails."""

from __future__ import annotations

import functools
import itertools
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytorch_lightning as pl

from flsimulation.data.federated import FederatedData
from flsimulation.data.leaves import Leaves, examples
from flsimulation.errors import ClientError, ModelError, kind_of
from flsimulation.experiment import Experiment
from flsimulation.experiment.spec import Train
from flsimulation.training import Batches, State
from flsimulation.training.alone import evaluation_step
from flsimulation.training.diagnosis import why_diverged
from flsimulation.training.lightning import as_on_device
from flsimulation.training.memory import TOO_SMALL
from flsimulation.training.preparation import Preparation
from flsimulation.training.probe import Finding, few, is_cheap, is_whole, tried
from flsimulation.training.trainers import takes_gpu

if TYPE_CHECKING:
    from flsimulation.client.workspace import Workspace

_RAW = re.compile(r"^(\w+\.)*\w*(Error|Exception)\b")  # an exception's text, none of ours
_AS_IT_IS = "32-true"  # the precision with which Lightning converts nothing
_ONE = re.compile("Expected more than 1 value per channel")
_LOOKED_AT = 1000  # clients, for the size of a batch that suits them
_KINDS = 3  # of errors that are looked into; each costs a step


def check_steps(
    experiment: Experiment,
    data: FederatedData,
    module: pl.LightningModule,
    prepared: Preparation,
) -> tuple[str, ...]:
    """Take the module's steps for a few examples on the CPU, before any client does.

    For a label out of range a GPU ends the process without a cause. So where clients train on one,
    such labels are looked for also where Lightning converts the module, and whatever takes them as
    an index.

    Returns
    -------
    tuple of str
        Lines for people: what trains, but most likely not as intended.

    Raises
    ------
    ModelError
        If the model or its loss certainly does not fit the data.
    """
    converted = experiment.train.precision != _AS_IT_IS  # by Lightning, with its inputs
    gpu = takes_gpu(experiment.train)
    if data.dataset.is_placeholder:  # the clients look, who have the examples
        return ()
    if (converted and not gpu) or not is_cheap(module) or not is_whole(module):
        return ()
    counts = functools.partial(_counts, gpu=gpu, converted=converted)
    dataset = data.dataset
    parts = [("training_step", dataset.x_train, dataset.y_train)]
    evaluation = evaluation_step(module)
    if evaluation is not None and experiment.evaluate.central_every and dataset.has_test:
        parts.append((evaluation, dataset.x_test, dataset.y_test))
    notices = dict[str, None]()
    evaluated = experiment.evaluate.batch_size or experiment.train.batch_size
    for step, x, y in parts:
        size = experiment.train.batch_size if step == "training_step" else evaluated
        every = np.arange(examples(x))
        finding = _finding(module, step, (x, y), every, size, prepared, counts)
        if finding is not None and finding.certain:
            name = experiment.model.class_
            raise ModelError(f"model.class {name!r}, data {dataset.name!r}: {finding.text}")
        if finding is not None:
            notices[finding.text] = None
            warnings.filterwarnings("ignore", "Using a target size")  # PyTorch's, at each size
    return tuple(notices)


def _finding(
    module: pl.LightningModule,
    step: str,
    data: tuple[Leaves, Leaves],
    indices: np.ndarray,
    size: int,
    prepared: Preparation,
    counts: Callable[[Finding | None], Finding | None],
) -> Finding | None:
    """What a step shows for a few of these examples, and where it fails for a batch of this size.

    A module may do with two examples what it does not do in a fit: one that takes batches of 32.
    """
    rows = few(*data, indices)
    others = indices[:size][~np.isin(indices[:size], rows)]
    finding = None
    for own in (rows, np.concatenate([rows, others])[: max(size, len(rows))]):
        try:
            batch = _sample(*data, own, prepared, training=step == "training_step")
        except ClientError:  # a transform refuses these
            return None
        finding = counts(tried(module, step, batch))
        if finding is None or not finding.certain:
            return finding if own is rows else None
    return finding


def _counts(finding: Finding | None, *, gpu: bool, converted: bool) -> Finding | None:
    """A finding where it says something of the training itself, which may differ from the trial."""
    if finding is None or (converted and not finding.is_index):
        return None
    if finding.is_index and gpu:
        return finding._replace(certain=True)
    return None if finding.is_index and not finding.certain else finding


def _sample(
    x: Leaves, y: Leaves, rows: np.ndarray, prepared: Preparation, *, training: bool
) -> object:
    """A batch of these examples, as a fit or an evaluation has it. Raises `ClientError`."""
    shuffled = functools.partial(np.random.default_rng, 0) if training else None
    return next(iter(Batches(x, y, rows, len(rows), shuffled, prepared=prepared)))


class Causes:
    """Finds the cause of failures of one phase; each kind of failure is looked into once.

    Parameters
    ----------
    space : Workspace
        Data, model and engine.
    model : dict of Tensor
        The global model that the clients received.
    round : int
        Of the phase.
    """

    def __init__(self, space: Workspace, model: State, round: int) -> None:
        self._space, self._model, self._round = space, model, round
        self._diverged: str | None = None
        self._known: dict[str, str | None] = {}

    def of_training(self, partition: int, error: ClientError) -> ClientError:
        """The failure of a client's training with its cause, if that is found."""
        if error.reason == "diverged":
            if self._diverged is None:
                self._diverged = f"{self._why(partition)} (found on client {partition})"
            return ClientError("diverged", f"{error}; {self._diverged}")
        return self._of_step("training_step", partition, error)

    def of_evaluation(self, partition: int | None, error: ClientError) -> ClientError:
        """The failure of an evaluation with its cause, if that is found.

        Parameters
        ----------
        partition : int, optional
            The client; None for the test set.
        error : ClientError
            Its failure.
        """
        return self._of_step(evaluation_step(self._space.module) or "", partition, error)

    def _why(self, partition: int) -> str:
        space = self._space
        try:
            job = functools.partial(space.train_job, partition, self._round)
            columns, spec = space.data.dataset.columns, space.experiment.of_client(partition).train
            spec = as_on_device(spec)
            why = why_diverged(space.module_of(partition), self._model, job, spec, columns)
            return _with_own_key(why, space.experiment, partition)
        except Exception:  # a user's module may do anything when its steps are repeated
            return "where it began is not known; lower the learning rate"

    def _of_step(self, step: str, partition: int | None, error: ClientError) -> ClientError:
        kind = kind_of(str(error))
        if error.reason != "error" or not _RAW.match(kind):
            return error
        if kind not in self._known:
            if len(self._known) >= _KINDS:
                return error
            self._known[kind] = self._found(step, partition, str(error))
        text = self._known[kind]
        return error if text is None else ClientError("error", text)

    def _found(self, step: str, partition: int | None, error: str) -> str | None:
        space, training = self._space, step == "training_step"
        spec = _own_spec(space, partition)
        if TOO_SMALL.search(error):
            size = spec.batch_size if training else space.evaluation_batch
            key = "train.batch-size" if training else "evaluate.batch-size"
            return f"there is not enough memory for {step}; lower {key} ({size})"
        if training and partition is not None and _ONE.search(error):
            return _of_one(space, partition)
        if not is_cheap(space.module):
            return None
        dataset = space.data.dataset
        if partition is None:
            data, indices = (dataset.x_test, dataset.y_test), dataset.test_indices
        else:
            part = space.data.train_indices if training else space.data.validation_indices
            data, indices = (dataset.x_train, dataset.y_train), part(partition)
        size = spec.batch_size if training else space.evaluation_batch
        counts = functools.partial(_counts, gpu=takes_gpu(spec), converted=False)
        finding = _finding(space.module, step, data, indices, size, space.prepared, counts)
        return finding.text if finding is not None and finding.certain else None


def _with_own_key(text: str, experiment: Experiment, partition: int) -> str:
    """The remedy with the key of the learning rate that a site has for itself."""
    if experiment.of_client(partition).model == experiment.model:
        return text
    key = f"train.sites.{experiment.data.sites[partition]}.learning-rate"
    return text.replace("model.args.learning_rate", key)


def _own_spec(space: Workspace, partition: int | None) -> Train:
    """How a client trains; of the test set, as the experiment says."""
    own = space.experiment if partition is None else space.experiment.of_client(partition)
    return own.train


def _of_one(space: Workspace, partition: int) -> str:
    """Why batch normalisation fails for a client, whose last batch has one example."""
    size, count = _own_spec(space, partition).batch_size, space.data.train_size(partition)
    takes = "batch normalisation needs two examples in a batch"
    if size == 1:
        return f"{takes}; raise train.batch-size (1)"
    if count == 1:
        return f"{takes}, but client {partition} has 1 for training; raise data.min-examples"
    if count % size != 1:
        return f"{takes}, and got one; look at how the module changes its batch"
    clients = itertools.islice(space.data.held, _LOOKED_AT)
    sizes = {count} | {space.data.train_size(client) for client in clients}
    better = next(
        (s for s in range(size + 1, 2 * size) if all(n % s != 1 for n in sizes)), 2 * size
    )
    return (
        f"{takes}, but the last of client {partition} has one ({count} examples, "
        f"train.batch-size {size}); set train.batch-size = {better}"
    )
