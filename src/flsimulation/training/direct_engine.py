"""The engine that trains clients one by one in a plain PyTorch loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytorch_lightning as pl

from flsimulation.clock import SYSTEM, Clock
from flsimulation.data.leaves import Leaves
from flsimulation.experiment.spec import Train
from flsimulation.training.direct_trainer import DirectTrainer
from flsimulation.training.evaluating import Evaluating
from flsimulation.training.facts import NeedsTrainer
from flsimulation.training.jobs import Job, Scored, State, Terms, Trained
from flsimulation.training.lightning_engine import LightningEngine
from flsimulation.training.preparation import PLAIN, Preparation
from flsimulation.training.products import in_tf32, takes_tf32


class DirectEngine(LightningEngine):
    """Trains clients one by one, in this process or in several, without Lightning's Trainer.

    A client that turns out to need the Trainer is trained with it.

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

    Raises
    ------
    NeedsTrainer
        If a fit of the module is more than its step, its optimizer and its hooks.
    """

    name = "direct"

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
        self._direct = DirectTrainer(module, spec, clock)
        self._tf32 = takes_tf32(spec)
        with in_tf32(self._tf32):
            reason = self._direct.why_not(x, y, prepared)
        if reason is not None:
            raise NeedsTrainer(reason)
        super().__init__(module, spec, x, y, processes, why_not, clock, prepared=prepared)
        self._evaluating = Evaluating(
            *(module, self._trainer, x, y, clock), prepared=prepared, tf32=self._tf32
        )

    def evaluate(
        self, model: State, jobs: Sequence[Job], expires: float | None = None
    ) -> Iterator[Scored]:
        """Score the model on each job's batches, those of one size together."""
        return self._evaluating.evaluate(model, jobs, expires)

    def _fitted(self, model: State, job: Job, terms: Terms) -> Trained:
        batches = job.batches.again()  # they are shuffled from one stream, which a fit draws from
        try:
            with in_tf32(self._tf32):
                return self._direct.fit(
                    model,
                    batches,
                    seed=job.seed(),
                    proximal_mu=terms.proximal_mu,
                    expires=terms.expires,
                    round=job.round,
                )
        except NeedsTrainer:
            return super()._fitted(model, job, terms)
