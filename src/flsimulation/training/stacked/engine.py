"""The engine that trains many clients at once, as one stacked program."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

import pytorch_lightning as pl

from flsimulation.clock import SYSTEM, Clock
from flsimulation.data.leaves import Leaves
from flsimulation.errors import ClientError, RunError, describe_error
from flsimulation.experiment.spec import Train
from flsimulation.privacy.transforms import updated
from flsimulation.training.clipped import clipped_wave
from flsimulation.training.evaluating import Evaluating
from flsimulation.training.jobs import Fitted, Job, Scored, State, Terms, Trained
from flsimulation.training.lightning import LocalTrainer
from flsimulation.training.lightning_engine import LightningEngine
from flsimulation.training.memory import free_unused, is_out_of_memory
from flsimulation.training.preparation import PLAIN, Preparation
from flsimulation.training.products import takes_tf32
from flsimulation.training.stacked.compiler.step import NotStackable
from flsimulation.training.stacked.trainer import Ending, StackedTrainer
from flsimulation.training.stacked.wave import Wave
from flsimulation.training.timing import one_thread, raise_first
from flsimulation.training.work import Tell, Work, silent


class StackedEngine:
    """Trains clients in waves, each wave as one program, and evaluates those of one size together.

    Parameters
    ----------
    module : LightningModule
        The model; never changed.
    spec : Train
        How clients train.
    x, y : Tensor or dict of Tensor
        Inputs and targets of the data set, [n, ...].
    clock : Clock
        The clock to use.
    prepared : Preparation
        How batches are prepared for the module.
    work : Work, optional
        What the clients do in all rounds; a step is traced only where it is worth that.
    tell : callable
        Called with what the choice of the engine does now.

    Raises
    ------
    NotStackable
        If the module does something else stacked than alone.
    """

    averages = True

    def __init__(
        self,
        module: pl.LightningModule,
        spec: Train,
        x: Leaves,
        y: Leaves,
        clock: Clock = SYSTEM,
        *,
        prepared: Preparation = PLAIN,
        work: Work | None = None,
        tell: Tell = silent,
    ) -> None:
        self._trainer = StackedTrainer(
            module, spec, x, y, clock, prepared=prepared, work=work, tell=tell
        )
        self.step_seconds: Mapping[str, float] = {}
        self.otherwise: Callable[[str], LightningEngine] | None = None
        """Builds the engine for the rest of the run, where a step turns out not to be stackable for
        a size of batches that no comparison had; None where stacked is what was requested."""
        self._instead: LightningEngine | None = None
        self._waves: Generator[Wave, None, None] | None = None
        self._lightning = LocalTrainer(module, spec, clock)
        self._updated = updated(module)
        self._evaluating = Evaluating(
            *(module, self._lightning, *self._trainer.data, clock),
            prepared=prepared,
            precision=spec.precision,
            tf32=takes_tf32(spec),
        )

    @property
    def name(self) -> str:
        """``stacked``, or the engine that has taken over."""
        return "stacked" if self._instead is None else self._instead.name

    @property
    def why_not(self) -> str | None:
        """Why another engine has taken over."""
        return None if self._instead is None else self._instead.why_not

    def at_once(self, cohort: int) -> int:
        """The most clients of a cohort that train together, on one core or on the GPU."""
        return self._trainer.at_once(cohort)

    def choose(self, cohort: int, before: Mapping[str, float] | None = None) -> None:
        """Choose how a GPU takes clients' steps, as before or by what a few of them take.

        Parameters
        ----------
        cohort : int
            Clients of a round.
        before : mapping, optional
            The figures of a run that is resumed.
        """
        found = self._trainer.choose(cohort, before)
        if before is None:
            self.step_seconds = found

    @property
    def has_choice(self) -> bool:
        """Whether there is something to choose."""
        return self._trainer.has_choice

    @property
    def gpu(self) -> str | None:
        """Name of the GPU that it computes on."""
        return self._lightning.gpu

    @property
    def can_evaluate(self) -> bool:
        """Whether the module has a ``validation_step`` (or a ``test_step``)."""
        return self._lightning.can_evaluate

    def fit(self, model: State, jobs: Sequence[Job], terms: Terms) -> Iterator[Fitted]:
        """Train each client from the global model; yields wave by wave. Raises `RunError`."""
        rest = {job.partition: job for job in jobs}
        if self._instead is None:
            try:
                for fitted in self._stacked(model, jobs, terms):
                    for partition in fitted.results:
                        del rest[partition]
                    yield fitted
            except NotStackable as reason:
                self._instead = self._other(str(reason), _not_stackable(reason))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                free_unused()
                why_not = (
                    f"there is not enough memory to train it stacked ({describe_error(error)})"
                )
                self._instead = self._other(
                    why_not, _too_little(error, gpu=self._lightning.uses_gpu)
                )
        if self._instead is not None:
            yield from self._instead.fit(model, [*rest.values()], terms)

    def _stacked(self, model: State, jobs: Sequence[Job], terms: Terms) -> Iterator[Fitted]:
        """Train wave by wave. Raises `NotStackable`."""
        self._waves = waves = self._trainer.fit(
            model,
            [job.batches for job in jobs],
            [job.seed for job in jobs],
            proximal_mu=terms.proximal_mu,
            expires=terms.expires,
            average=terms.average,
            ending=_clipping(jobs, terms, self._updated) if terms.clip else None,
            round=jobs[0].round if jobs else 0,
        )
        with contextlib.closing(waves):
            for wave in waves:
                yield _fitted(wave, jobs, average=terms.average)

    def _other(self, why_not: str, requested: RunError) -> LightningEngine:
        """The engine that takes over. Raises the error if stacked was requested."""
        if self.otherwise is None:
            raise requested
        return self.otherwise(why_not)

    def practise(self, model: State, jobs: Sequence[Job], terms: Terms) -> None:
        """Train clients in this thread and drop the results. Raises `ClientError`."""
        clients, seeds = [job.batches for job in jobs], [job.seed for job in jobs]
        with one_thread():
            for wave in self._trainer.fit(
                model, clients, seeds, average=terms.average, practice=True
            ):
                raise_first(wave.results)

    def evaluate(
        self, model: State, jobs: Sequence[Job], expires: float | None = None
    ) -> Iterator[Scored]:
        """Score the model on each job's batches, those of one size together."""
        yield from self._evaluating.evaluate(model, jobs, expires)

    def close(self) -> None:
        """End a fit that was not iterated to its end: it holds PyTorch to one thread."""
        if self._waves is not None:
            self._waves.close()
        if self._instead is not None:
            self._instead.close()


def _clipping(jobs: Sequence[Job], terms: Terms, names: Mapping[str, str]) -> Ending:
    """What ends each wave where updates have a largest norm."""

    def ending(wave: Wave, model: State) -> Wave:
        own = [jobs[client] for client in wave.clients]
        return clipped_wave(wave, model, own, terms, names)

    return ending


def _not_stackable(reason: NotStackable) -> RunError:
    """The end of a run of a step that is not stackable for a size that no comparison had."""
    return RunError(
        f"the clients cannot be trained together after all: {reason}; set train.engine = 'lightning'"
    )


def _too_little(error: Exception, *, gpu: bool) -> RunError:
    """The end of a run whose waves were halved until one client was left."""
    cpu = " or train.device = 'cpu'" if gpu else ""
    return RunError(
        f"there is not enough memory to train a single client stacked ({describe_error(error)}); "
        f"lower train.batch-size, or set train.engine = 'lightning'{cpu}"
    )


def _fitted(wave: Wave, jobs: Sequence[Job], *, average: bool) -> Fitted:
    results: dict[int, Trained | ClientError] = {}
    for place, (client, result) in enumerate(zip(wave.clients, wave.results, strict=True)):
        own = isinstance(result, Trained) and not average
        partition = jobs[client].partition
        results[partition] = result._replace(state=wave.state(place)) if own else result  # type: ignore[union-attr]
    return Fitted(results, wave.weights if average else None)
