"""The round loop: Flower's strategies decide, this module sees that every round is sound.

``Strategy.start()`` of Flower gives no event per round, no deadline and no error when every client
failed; here its four hooks are called one by one, so that any Flower strategy works unmodified.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import Strategy

from flsimulation import seeds
from flsimulation.errors import RoundError, RunError, describe_error
from flsimulation.events import BOOKKEEPING, Checkpoint, Judged, Phase, RoundFinished, Scores, Sink
from flsimulation.experiment import Experiment
from flsimulation.messages.batch import ask_average
from flsimulation.messages.content import set_model
from flsimulation.messages.weights import weights_sha256, without
from flsimulation.server.aggregation import Aggregation, require_same_metrics
from flsimulation.server.exchange import Errand, Exchange, Replies
from flsimulation.server.sampling import offered

_NAMED_FAILURES = 3  # clients whose errors stand in the message of a failed round


@dataclass(frozen=True)
class Rounds:
    """The rounds of one federation.

    Parameters
    ----------
    experiment : Experiment
        Rounds, seed, what a round needs.
    strategy : Strategy
        One of Flower's, or any object with its four hooks.
    exchange : Exchange
        Carries the messages.
    judge : callable
        Scores of a global model on the test set.
    emit : callable
        Takes the events.
    buffers : iterable of str
        Arrays that the strategy does not see; they are averaged over the clients.
    """

    experiment: Experiment
    strategy: Strategy
    exchange: Exchange
    judge: Callable[[ArrayRecord], Scores]
    emit: Sink
    buffers: frozenset[str] = frozenset()

    @property
    def _aggregation(self) -> Aggregation:
        return Aggregation(self.strategy, self.experiment.strategy.name, self.buffers)

    def run(self, arrays: ArrayRecord, first: int = 1) -> Ended:
        """Run round ``first`` to the last: that of the experiment, or where its target is reached.

        Raises
        ------
        RunError
            If a round has too few results, the strategy fails, or the model diverges.
        """
        due: _Due | None = None
        evaluated, number = Replies(()), first - 1
        while number < self.experiment.strategy.rounds:
            number += 1
            due = self._round(number, arrays, due)
            arrays, reached = due.arrays, self._reached(due.central)
            if reached or not self._shares(number):
                (evaluated,) = self.exchange.run(due.errand)
                self._finish(due, evaluated)
                due = None
            if reached:
                break
        return Ended(arrays, evaluated, number)

    def _reached(self, central: Scores | None) -> bool:
        target = self.experiment.evaluate.target_accuracy
        if central is not None and target and "accuracy" not in central:
            raise RunError(
                f"evaluate.target-accuracy is {target}, but the model logs no accuracy on the test "
                f"set; log val_accuracy in its validation_step, or set the key to 0"
            )
        return is_reached(target, central)

    def _round(self, number: int, arrays: ArrayRecord, before: _Due | None) -> _Due:
        clock = _Clock()
        # 1. The strategy samples a cohort and says what each client gets.
        # 2. The clients train; each answer is an event as it comes. Where messages cost time they
        #    evaluate the model of the round before in the same message.
        trained = self._train(number, arrays, before)
        self._require(number, trained, self.experiment.round.min_results)
        clock.lap("train")
        # 3. The strategy makes the new global model of their results.
        arrays, metrics = self._aggregation.aggregate(number, trained)
        train_scores = _scores(metrics)
        self.emit(Checkpoint(number, arrays, self.strategy))
        clock.lap("aggregate")
        # 4. The new model is judged on the test set, and by clients on their held-out parts.
        central = self.judge(arrays) if self._judged(number) else None
        if central:
            self.emit(Judged(number, central))
        errand = self._configure("evaluate", number, arrays)
        return _Due(number, arrays, errand, trained, train_scores, central, clock)

    def _shares(self, number: int) -> bool:
        """Whether a round's evaluation goes out with the next round's training."""
        return self.exchange.grid.costs_time and number < self.experiment.strategy.rounds

    def _train(self, number: int, arrays: ArrayRecord, before: _Due | None) -> Replies:
        if before is None:
            (trained,) = self.exchange.run(self._configure("train", number, arrays))
            return trained
        before.clock.lap("evaluate")
        evaluated: Replies | None = None
        try:
            training = self._configure("train", number, arrays)
            evaluated, trained = self.exchange.run(before.errand, training)
        finally:  # the round before is done, whatever becomes of this one
            self._finish(before, evaluated or Replies(()))
        return trained

    def _finish(self, due: _Due, evaluated: Replies) -> None:
        # 5. What happened is told; whoever listens keeps, shows or serves it.
        number = due.round
        self._require(number, evaluated, min(1, len(evaluated.cohort)))
        federated = self._federated(number, evaluated)
        if "evaluate" not in due.clock.laps:
            due.clock.lap("evaluate")
        self.emit(
            RoundFinished(
                round=number,
                central=due.central,
                federated=federated,
                train=due.train,
                cohort=due.trained.cohort,
                failures=_count(due.trained, evaluated),
                seconds=due.clock.seconds(),
                bytes=_traffic(due.trained, evaluated),
                weights_sha256=weights_sha256(due.arrays),
            )
        )

    def _configure(self, phase: Phase, number: int, arrays: ArrayRecord) -> Errand:
        self._gather(number, phase)
        hook = getattr(self.strategy, f"configure_{phase}")
        seen = without(arrays, self.buffers) if self.buffers else arrays
        with seeds.python_random(self.experiment.seed, f"sample-{phase}", number):
            grid = offered(self.exchange.grid, self.experiment, phase, number)
            messages = list(hook(number, seen, ConfigRecord(), grid))
        if self.buffers:
            for message in messages:
                set_model(message, arrays)
        if phase == "train" and self.exchange.grid.averages and self._aggregation.is_mean:
            ask_average(messages)
        return self.exchange.errand(number, phase, messages)

    def _gather(self, number: int, phase: str) -> None:
        """Let clients that went away come back; go on without them where enough are left."""
        spec, grid = self.experiment, self.exchange.grid
        least = max(spec.round.min_results, spec.strategy.min_train_nodes)
        if phase == "evaluate":
            least = spec.strategy.min_evaluate_nodes
        there = grid.gather(spec.runtime.return_wait)
        if there < least and not grid.wait(least, spec.runtime.client_wait):
            raise RoundError(
                f"round {number}: {len(grid.partitions)} of {spec.data.clients} clients are "
                f"connected, {least} needed; none came back within "
                f"{spec.runtime.client_wait:g} s"
            )

    def _require(self, number: int, replies: Replies, least: int) -> None:
        """Stop the run unless enough clients succeeded: an empty round is no success."""
        if len(replies.metrics) >= max(least, 1 if replies.cohort else 0):
            return
        named = [f"client {p}: {replies.failures[p]}" for p in sorted(replies.failures)]
        more = len(named) - _NAMED_FAILURES
        raise RoundError(
            f"round {number}: {len(replies.metrics)} of {len(replies.cohort)} clients "
            f"succeeded, {least} needed; "
            + "; ".join(named[:_NAMED_FAILURES])
            + (f"; and {more} more" if more > 0 else "")
        )

    def _federated(self, number: int, evaluated: Replies) -> Scores | None:
        if not evaluated.cohort:
            return None
        require_same_metrics(number, evaluated)
        try:
            return _scores(self.strategy.aggregate_evaluate(number, evaluated.results))
        except Exception as error:
            raise RunError(f"round {number}: evaluation: {describe_error(error)}") from error

    def _judged(self, number: int) -> bool:
        every = self.experiment.evaluate.central_every
        return every > 0 and (number % every == 0 or number == self.experiment.strategy.rounds)


class Ended(NamedTuple):
    """What the rounds came to."""

    arrays: ArrayRecord
    """The global model."""
    evaluated: Replies
    """Its evaluation by clients."""
    round: int
    """The last one."""


def is_reached(target: float, central: Scores | None) -> bool:
    """Whether a model with these scores on the test set ends a run with this target accuracy."""
    return target > 0 and central is not None and central.get("accuracy", 0.0) >= target


@dataclass(frozen=True)
class _Due:
    """A round whose evaluation by clients is still to come."""

    round: int
    arrays: ArrayRecord
    """The global model that it made."""
    errand: Errand
    """The evaluation's messages."""
    trained: Replies
    train: Scores | None
    central: Scores | None
    clock: _Clock


@dataclass
class _Clock:
    """Seconds of a round's phases."""

    began: float = field(default_factory=time.perf_counter)
    laps: dict[str, float] = field(default_factory=dict)

    def lap(self, phase: str) -> None:
        """The time since the last lap belongs to ``phase``."""
        self.laps[phase] = time.perf_counter() - self.began - sum(self.laps.values())

    def seconds(self) -> dict[str, float]:
        """All laps, and the total."""
        return {"total": sum(self.laps.values()), **self.laps}


def _scores(metrics: MetricRecord | None) -> Scores | None:
    """The strategy's aggregated metrics without those that mean nothing as an average."""
    if metrics is None:
        return None
    return {
        name: float(value)
        for name, value in metrics.items()
        if name not in BOOKKEEPING and not isinstance(value, list)
    }


def _count(*phases: Replies) -> dict[str, int]:
    reasons: Counter[str] = Counter(
        error.reason for replies in phases for error in replies.failures.values()
    )
    return dict(sorted(reasons.items()))


def _traffic(*phases: Replies) -> dict[str, int]:
    return {
        "down": sum(replies.bytes_down for replies in phases),
        "up": sum(replies.bytes_up for replies in phases),
    }
