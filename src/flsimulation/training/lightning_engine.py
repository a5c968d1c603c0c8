"""The engine that trains one client after the other with Lightning's own Trainer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pytorch_lightning as pl

from flsimulation.clock import SYSTEM, Clock
from flsimulation.data.leaves import Leaves
from flsimulation.errors import ClientError, describe_error
from flsimulation.experiment.spec import Train
from flsimulation.host.warned import of_client
from flsimulation.privacy.transforms import updated
from flsimulation.training.clipped import clipped
from flsimulation.training.evaluating import evaluated_alone
from flsimulation.training.jobs import Fitted, Job, Scored, State, Terms, Trained
from flsimulation.training.lightning import LocalTrainer
from flsimulation.training.preparation import PLAIN, Preparation
from flsimulation.training.timing import one_thread
from flsimulation.training.workers import Source, Workers


class LightningEngine:
    """Trains clients one by one, in this process or in several.

    Parameters
    ----------
    module : LightningModule
        The model; never changed.
    spec : Train
        How clients train.
    x, y : Tensor or dict of Tensor
        Inputs and targets of the data set, [n, ...].
    processes : int
        In which clients train; with one it is this process.
    why_not : str, optional
        Why they do not train stacked, where that was tried.
    clock : Clock
        The clock to use.
    prepared : Preparation
        How batches are prepared for the module.
    """

    name: str = "lightning"
    averages = False

    def __init__(
        self,
        module: pl.LightningModule,
        spec: Train,
        x: Leaves,
        y: Leaves,
        processes: int = 1,
        why_not: str | None = None,
        clock: Clock = SYSTEM,
        *,
        prepared: Preparation = PLAIN,
    ) -> None:
        self._trainer = LocalTrainer(module, spec, clock)
        self._updated = updated(module)
        self._workers: Workers | None = None
        if processes > 1:
            source = Source(x, y, prepared)
            self._workers = Workers(self._fit_one, module.state_dict(), source, processes, clock)
        self.why_not = why_not
        self.step_seconds: Mapping[str, float] = {}

    @property
    def gpu(self) -> str | None:
        """Name of the GPU that it computes on."""
        return self._trainer.gpu

    @property
    def can_evaluate(self) -> bool:
        """Whether the module has a ``validation_step`` (or a ``test_step``)."""
        return self._trainer.can_evaluate

    def fit(self, model: State, jobs: Sequence[Job], terms: Terms) -> Iterator[Fitted]:
        """Train each client from the global model; yields one client at a time."""
        if self._workers is not None:
            results: Iterator[Trained | ClientError] = self._workers.fit(model, jobs, terms)
        else:
            results = (self._fit_one(model, job, terms) for job in jobs)
        for job, result in zip(jobs, results, strict=True):
            yield Fitted({job.partition: result})

    def practise(self, model: State, jobs: Sequence[Job], terms: Terms) -> None:
        """Train clients in this thread and drop the results. Raises `ClientError`."""
        with one_thread():
            for job in jobs:
                self._fitted(model, job, terms)

    def evaluate(
        self, model: State, jobs: Sequence[Job], expires: float | None = None
    ) -> Iterator[Scored]:
        """Score the model on each job's batches, one by one."""
        for job in jobs:
            yield {job.partition: evaluated_alone(self._trainer, model, job, expires)}

    def close(self) -> None:
        """End the processes, also in the middle of a fit."""
        if self._workers is not None:
            self._workers.close()

    def _fit_one(self, model: State, job: Job, terms: Terms) -> Trained | ClientError:
        try:
            with of_client(job.partition):
                return clipped(self._fitted(model, job, terms), model, job, terms, self._updated)
        except ClientError as error:
            return error
        except Exception as error:
            return ClientError("error", describe_error(error))

    def _fitted(self, model: State, job: Job, terms: Terms) -> Trained:
        """Train one client. Raises `ClientError`."""
        return self._trainer.fit(
            model,
            job.batches,
            seed=job.seed(),
            validation=job.validation,
            proximal_mu=terms.proximal_mu,
            expires=terms.expires,
            round=job.round,
        )
