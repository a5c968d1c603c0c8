"""The engine that trains clients with DP-SGD: many at once, or one by one."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator, Mapping, Sequence

import pytorch_lightning as pl
import torch

from flsimulation.clock import SYSTEM, Clock
from flsimulation.data.leaves import Leaves, each
from flsimulation.errors import ClientError, ModelError
from flsimulation.experiment.spec import Train
from flsimulation.host.warned import of_client
from flsimulation.privacy.examples import Noisy
from flsimulation.training.evaluating import Evaluating
from flsimulation.training.failures import no_step
from flsimulation.training.jobs import Fitted, Job, Scored, State, Terms, Trained
from flsimulation.training.lightning import LocalTrainer
from flsimulation.training.logged import CannotTake
from flsimulation.training.preparation import PLAIN, Preparation
from flsimulation.training.private.checks import check_module, checked
from flsimulation.training.private.choice import chosen
from flsimulation.training.private.dropout import is_dropout
from flsimulation.training.private.fit import Fit, Private
from flsimulation.training.products import in_tf32, takes_tf32
from flsimulation.training.rates import rate_factor
from flsimulation.training.stacked.compiler.eager import EagerStep
from flsimulation.training.stacked.compiler.step import NotStackable
from flsimulation.training.stacked.configuring import Configuring
from flsimulation.training.stacked.eligible import Clip
from flsimulation.training.stacked.halving import Halving
from flsimulation.training.stacked.room import kept_on
from flsimulation.training.stacked.samples import some
from flsimulation.training.stacked.stack import aliases
from flsimulation.training.stacked.threads import Threads
from flsimulation.training.trainers import takes_gpu
from flsimulation.training.work import Tell, silent

_WAVE_BYTES = 512 * 2**20  # of what a step keeps for all examples of a wave
_KEPT = 6  # numbers of four bytes for each one that a step writes
_DATA_SHARE = 2  # of a GPU's free memory for the data set: 1 / 2


class PrivateEngine:
    """Trains clients with DP-SGD and evaluates them as other engines do.

    Parameters
    ----------
    module : LightningModule
        The model; never changed.
    spec : Train
        How clients train.
    x, y : Tensor or dict of Tensor
        Inputs and targets of the data set, [n, ...].
    noisy : Noisy
        The clipping norm and the noise.
    clients : int
        The most that may train here at a time.
    clock : Clock
        The clock to use.
    prepared : Preparation
        How batches are prepared for the module.
    tell : callable
        Called with what the choice of the engine does now.

    Raises
    ------
    ModelError
        If the module cannot be trained with the guarantee.
    """

    averages = False

    def __init__(
        self,
        module: pl.LightningModule,
        spec: Train,
        x: Leaves,
        y: Leaves,
        noisy: Noisy,
        clients: int,
        clock: Clock = SYSTEM,
        *,
        prepared: Preparation = PLAIN,
        tell: Tell = silent,
    ) -> None:
        check_module(module, spec)
        device = torch.device("cuda" if takes_gpu(spec) else "cpu")
        self._lightning = LocalTrainer(module, spec, clock)
        self._tf32 = takes_tf32(spec)
        x, y = (x, y) if prepared.transform is not None else kept_on(device, _DATA_SHARE, x, y)
        self._evaluating = Evaluating(
            module, self._lightning, x, y, clock, prepared=prepared, tf32=self._tf32
        )
        tell("comparing the gradients of single examples")
        few = [each(lambda t: t.to(device), part) for part in some(x, y, prepared.transform)]
        module = module if device.type == "cpu" else copy.deepcopy(module).to(device)
        try:
            eager = EagerStep(module, few[0], few[1], prepared.form)
            configuring = Configuring(module, spec.epochs)
            _, schedulers = configuring()
            draws = eager.observed(1).draws
        except (NotStackable, CannotTake) as reason:
            raise ModelError(
                f"privacy.mode is 'example', but {reason}; DP-SGD needs a training_step and an "
                f"optimizer that work without a Trainer"
            ) from None
        gradients, numbers, self.why_not = chosen(eager, checked(eager), noisy.clip)
        self._by_steps = bool(schedulers) or configuring.by_batches
        self._draws = bool(draws) and not (numbers and is_dropout(draws))
        self._most = 1
        if numbers and self._draws:
            self.why_not = "its step draws other random numbers than those of dropout"
        elif numbers:
            each_client = numbers * _KEPT * 4 * spec.batch_size
            self._most = max(1, _WAVE_BYTES // each_client)
            if self._most == 1:
                self.why_not = f"a step keeps {each_client / 2**20:,.0f} MiB for each client"
        stacked = self._most > 1 and clients > 1 and spec.engine != "direct"
        if spec.engine == "stacked" and self._most == 1:
            raise ModelError(
                f"train.engine is 'stacked', but {self.why_not}; use 'auto' or 'direct'"
            )
        self.name = "stacked" if stacked or spec.engine == "stacked" else "direct"
        self._most = self._most if stacked else 1
        self.step_seconds: Mapping[str, float] = {}
        named = dict(module.named_parameters())
        names = eager.names.trained
        self._private = Private(
            gradients,
            names,
            aliases(module),
            [named[name] for name in names],
            configuring,
            None if self._draws else draws,
            spec.epochs,
            noisy.clip * noisy.multiplier,
            Clip(spec.gradient_clip, "norm") if spec.gradient_clip else None,
            (x, y),
            device,
            clock,
        )
        self._spec, self._halving, self._threads = spec, Halving(), Threads()

    @property
    def gpu(self) -> str | None:
        """Name of the GPU that it computes on."""
        return self._lightning.gpu

    @property
    def can_evaluate(self) -> bool:
        """Whether the module has a ``validation_step`` (or a ``test_step``)."""
        return self._lightning.can_evaluate

    def fit(self, model: State, jobs: Sequence[Job], terms: Terms) -> Iterator[Fitted]:
        """Train each client from the global model; yields wave by wave."""
        empty = [job for job in jobs if not job.batches.examples]
        if empty:
            yield Fitted({job.partition: no_step() for job in empty})
        on_cpu = self._private.device.type == "cpu"
        threads = 1 if self._draws or not on_cpu else torch.get_num_threads()
        waves = self._waves(jobs, threads)

        def train(places: list[int]) -> Fitted:
            return self._trained(model, [jobs[place] for place in places], terms)

        fitting = functools.partial(self._halving.run, train)
        if threads == 1 or len(waves) == 1:
            for places in waves:
                yield from fitting(places)
        else:
            yield from self._threads.run(fitting, waves, threads)

    def _trained(self, model: State, jobs: Sequence[Job], terms: Terms) -> Fitted:
        factor = rate_factor(self._spec, jobs[0].round)
        alone = len(jobs) == 1
        results: Sequence[Trained | ClientError]
        with in_tf32(self._tf32):
            try:
                with of_client(jobs[0].partition) if alone else contextlib.nullcontext():
                    results = Fit(self._private, model, jobs, terms, factor).run()
            except ClientError as error:
                if not alone:
                    raise
                results = [error]
        return Fitted(dict(zip((job.partition for job in jobs), results, strict=True)))

    def _waves(self, jobs: Sequence[Job], threads: int) -> list[list[int]]:
        """Places of clients that train together, of like length: all threads have as many waves."""
        places = [place for place, job in enumerate(jobs) if job.batches.examples]
        most = max(1, min(self._most, -(-len(places) // threads)))
        waves: list[list[int]] = []
        for place in sorted(places, key=lambda place: -len(jobs[place].batches)):
            steps = len(jobs[place].batches)
            other = waves and self._by_steps and len(jobs[waves[-1][0]].batches) != steps
            if not waves or len(waves[-1]) == most or other:
                waves.append([])
            waves[-1].append(place)
        return waves

    def evaluate(
        self, model: State, jobs: Sequence[Job], expires: float | None = None
    ) -> Iterator[Scored]:
        """Score the model on each job's batches, those of one size together."""
        yield from self._evaluating.evaluate(model, jobs, expires)

    def close(self) -> None:
        """Nothing stays between calls."""
