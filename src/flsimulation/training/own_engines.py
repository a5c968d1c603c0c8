"""Clients with train keys of their own: each trains by the engine of its keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from flsimulation.training.engine import Engine
from flsimulation.training.jobs import Fitted, Job, Scored, State, Terms


class OwnEngines:
    """An engine that passes each client's training to that of its keys.

    Parameters
    ----------
    usual : Engine
        That of clients without keys of their own; it evaluates all.
    own : mapping of int to Engine
        Those of the others, by partition; clients with the same keys share one.
    """

    averages = False

    def __init__(self, usual: Engine, own: Mapping[int, Engine]) -> None:
        self._usual, self._own = usual, own

    @property
    def step_seconds(self) -> Mapping[str, float]:
        """Those of the usual engine."""
        return self._usual.step_seconds

    @property
    def gpu(self) -> str | None:
        """Name of the GPU that the usual engine computes on."""
        return self._usual.gpu

    @property
    def can_evaluate(self) -> bool:
        """Whether the module has a ``validation_step`` (or a ``test_step``)."""
        return self._usual.can_evaluate

    @property
    def _all(self) -> list[Engine]:
        return [self._usual, *dict.fromkeys(self._own.values())]

    @property
    def name(self) -> str:
        """The engines' names."""
        return ", ".join(sorted({engine.name for engine in self._all}))

    @property
    def why_not(self) -> str | None:
        """Why clients are not trained stacked, where that was tried."""
        return next((why for engine in self._all if (why := engine.why_not)), None)

    def fit(self, model: State, jobs: Sequence[Job], terms: Terms) -> Iterator[Fitted]:
        """Train each client, those with the same keys together; see `Engine.fit`."""
        for engine in self._all:
            theirs = [job for job in jobs if self._own.get(job.partition, self._usual) is engine]
            if theirs:
                yield from engine.fit(model, theirs, terms)

    def evaluate(
        self, model: State, jobs: Sequence[Job], expires: float | None = None
    ) -> Iterator[Scored]:
        """Score the model, to which no train key matters; see `Engine.evaluate`."""
        return self._usual.evaluate(model, jobs, expires)

    def close(self) -> None:
        """End what a call has started."""
        for engine in self._all:
            engine.close()
