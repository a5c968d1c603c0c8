"""The engines that an experiment's model allows, each built, or the reason why not."""

from __future__ import annotations

from dataclasses import dataclass

import pytorch_lightning as pl

from flsimulation.clock import SYSTEM, Clock
from flsimulation.data.leaves import Leaves
from flsimulation.errors import describe_error
from flsimulation.experiment.spec import Train
from flsimulation.host.warned import collected, pass_on
from flsimulation.training.direct_engine import DirectEngine
from flsimulation.training.facts import NeedsTrainer
from flsimulation.training.lightning_engine import LightningEngine
from flsimulation.training.memory import is_out_of_memory
from flsimulation.training.preparation import PLAIN, Preparation
from flsimulation.training.stacked.compiler.step import NotStackable
from flsimulation.training.stacked.engine import StackedEngine
from flsimulation.training.timing import Sample, Timed, step_seconds
from flsimulation.training.work import Tell, Work, silent


@dataclass(frozen=True)
class Candidates:
    """Builds each engine for the same module and data."""

    module: pl.LightningModule
    spec: Train
    x: Leaves
    y: Leaves
    processes: int = 1
    clock: Clock = SYSTEM
    prepared: Preparation = PLAIN
    work: Work | None = None
    tell: Tell = silent

    def stacked(self) -> StackedEngine | str:
        """The stacked engine, or why the module does not allow it, as the end of a sentence.

        What its step warns of is passed on only if no step of a client will do so again.
        """
        with collected() as warned:
            try:
                engine = StackedEngine(
                    *(self.module, self.spec, self.x, self.y, self.clock),
                    prepared=self.prepared,
                    work=self.work,
                    tell=self.tell,
                )
            except Exception as error:  # a user's module may do anything when it is traced
                return _reason(error)
        pass_on(warned.take())
        return engine

    def direct(self, why_not: str | None = None) -> DirectEngine | str:
        """The direct engine, or why the module needs the Trainer, as the end of a sentence."""
        try:
            return DirectEngine(
                *(self.module, self.spec, self.x, self.y, self.processes, why_not, self.clock),
                prepared=self.prepared,
            )
        except Exception as error:
            known = isinstance(error, NeedsTrainer)
            return str(error) if known else f"it cannot be tried ({describe_error(error)})"

    def lightning(self, why_not: str | None = None) -> LightningEngine:
        """The engine of Lightning's Trainer, which every module allows."""
        return LightningEngine(
            *(self.module, self.spec, self.x, self.y, self.processes, why_not, self.clock),
            prepared=self.prepared,
        )

    def one_by_one(self, why_not: str) -> LightningEngine:
        """The engine for clients that do not train stacked, for this reason."""
        direct = self.direct(why_not)
        return self.lightning(why_not) if isinstance(direct, str) else direct

    def step_seconds(self, stacked: StackedEngine, *others: LightningEngine) -> dict[str, float]:
        """Processor seconds of a client's step by engine; empty where measuring is not worth it.

        That is on a GPU, where a thread's seconds are not those of the steps, and where there are
        few steps.
        """
        if self.work is None or stacked.gpu is not None:
            return {}
        clients = stacked.at_once(self.work.cohort)
        sample = self._sample(self.work, clients)
        if not sample.is_worth_it:
            return {}
        self.tell("measuring a few steps")
        timed = {"stacked": Timed(stacked, clients), **{e.name: Timed(e, 1) for e in others}}
        return step_seconds(timed, sample, self.clock)

    def chose_way(self, stacked: StackedEngine) -> bool:
        """Have the stacked engine measure its ways of a step, if there are two and many steps."""
        if self.work is None or not stacked.has_choice:
            return False
        if self.work.is_worth_a_choice(stacked.at_once(self.work.cohort)):
            self.tell("measuring a few steps")
            stacked.choose(self.work.cohort)
        return bool(stacked.step_seconds)

    def _sample(self, work: Work, clients: int) -> Sample:
        return Sample(*(self.module, self.spec, self.x, self.y, self.prepared, work, clients))


def _reason(error: Exception) -> str:
    """Why clients cannot be trained stacked, as the end of a sentence."""
    if isinstance(error, NotStackable):
        return str(error)
    described = describe_error(error)
    if is_out_of_memory(error):
        return (
            f"there is not enough memory to prepare its step for many clients at once "
            f"({described}); lower train.batch-size"
        )
    return f"it cannot be traced ({described})"
