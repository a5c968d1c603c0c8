"""The round loop: calls the methods of Flower's strategies, and checks every round.

Flower's ``Strategy.start()`` has no event per round, no deadline, and no error if every client
failed. So the strategy's four methods are called here; any Flower strategy works unmodified.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import Strategy

from flsimulation import seeds
from flsimulation.clock import SYSTEM, Clock
from flsimulation.errors import RoundError, RunError, describe_error
from flsimulation.events import (
    Checkpoint,
    Judged,
    Noticed,
    Phase,
    RoundFinished,
    Scores,
    Sink,
)
from flsimulation.experiment import Experiment
from flsimulation.messages.weights import sha256_of, values_of, without
from flsimulation.server.aggregation import Aggregation
from flsimulation.server.exchange import Exchange
from flsimulation.server.federated import Merge, federated_scores, merge_none, scores_in
from flsimulation.server.hooks import batches_of, by_partition
from flsimulation.server.laps import Laps
from flsimulation.server.notices import Notices
from flsimulation.server.private import Spending
from flsimulation.server.replies import Replies, failures_of, traffic_of
from flsimulation.server.sampling import offered


@dataclass(frozen=True)
class Rounds:
    """The rounds of one federation.

    Parameters
    ----------
    experiment : Experiment
        Its rounds, seed, and what a round requires.
    strategy : Strategy
        One of Flower's, or any object with its four methods.
    exchange : Exchange
        Sends tasks to the clients.
    judge : callable or None
        Returns scores of a round's global model on the test set, of its number and the model; None
        without a test set.
    emit : callable
        Called with the events.
    buffers : iterable of str
        Arrays that are not passed to the strategy; they are averaged over the clients.
    constants : iterable of str
        Arrays that no optimizer trains; where all clients return the same one, it is that.
    clock : Clock
        The clock to use.
    merge : callable
        Merges the clients' states of metric objects.
    private : Spending or None
        Hides the clients, and counts what that spends.
    """

    experiment: Experiment
    strategy: Strategy
    exchange: Exchange
    judge: Callable[[int, ArrayRecord], Scores] | None
    emit: Sink
    buffers: frozenset[str] = frozenset()
    constants: frozenset[str] = frozenset()
    clock: Clock = SYSTEM
    merge: Merge = merge_none
    private: Spending | None = None

    @functools.cached_property
    def notices(self) -> Notices:
        """The lines about missing scores."""
        return Notices(self.emit)

    @functools.cached_property
    def _beside(self) -> ThreadPoolExecutor:
        """A thread for what an evaluation need not wait for."""
        return ThreadPoolExecutor(1, "digest")

    @property
    def _aggregation(self) -> Aggregation:
        name = self.experiment.strategy.name
        return Aggregation(self.strategy, name, self.buffers, self.constants, self.private)

    def run(self, arrays: ArrayRecord, first: int = 1) -> Ended:
        """Run rounds from ``first`` to the experiment's last, or until its target is reached.

        Raises
        ------
        RunError
            If a round has too few results, the strategy fails, or the model diverges.
        """
        rounds, before = self.experiment.strategy.rounds, None
        ended = Ended(arrays, Replies(first - 1, "evaluate"), first - 1)
        for number in range(first, rounds + 1):
            if self._is_spent(number):
                break
            before = self._round(number, ended.arrays, before)
            ended = Ended(before.arrays, before.evaluated, number)
            if before.is_last:
                break
        return ended

    def _round(self, number: int, arrays: ArrayRecord, before: _Round | None) -> _Round:
        laps = Laps(self.clock)
        # 1. The strategy samples a cohort and configures each client's task.
        # 2. The clients train; each outcome is an event as it arrives. Evaluations that are still
        #    missing from the round before arrive with them.
        trained = self._train(number, arrays, before)
        laps.lap("train")
        # 3. The strategy aggregates their results to the new global model.
        arrays, metrics = self._aggregation.aggregate(number, trained, arrays)
        self.notices.left_out(trained)
        spent = self.private.spend(trained) if self.private is not None else None
        trained.forget_models()
        self.emit(Checkpoint(number, arrays, self.strategy))
        digest = self._beside.submit(sha256_of, values_of(arrays))
        laps.lap("aggregate")
        # 4. The new model is evaluated on the test set, and by clients on their held-out parts.
        central = self._central(number, arrays)
        is_last = self._is_last(number, central)
        evaluated = self._post("evaluate", number, arrays, can_wait=not is_last)
        self._take_in()
        laps.lap("evaluate")
        # 5. When all evaluations have arrived, the round is finished.
        scores = scores_in(metrics)
        round = _Round(arrays, digest, trained, scores, central, evaluated, is_last, laps, spent)
        if evaluated.is_complete:
            self._finish(round)
        return round

    def _train(self, number: int, arrays: ArrayRecord, before: _Round | None) -> Replies:
        was_open = before is not None and not before.evaluated.is_complete
        try:
            trained = self._post("train", number, arrays)
            self._take_in()
        finally:  # the round before is finished, also if this one fails
            if before is not None and was_open:
                self._finish(before)
        self._require(number, trained, self.experiment.round.min_results)
        return trained

    def _take_in(self) -> None:
        """Wait until every task that was sent has its outcome in its `Replies`."""
        for _ in self.exchange.outcomes():
            pass

    def _central(self, number: int, arrays: ArrayRecord) -> Scores | None:
        """Scores on the test set, in the rounds that have them."""
        every = self.experiment.evaluate.central_every
        last = number == self.experiment.strategy.rounds
        if self.judge is None or every == 0 or (number % every and not last):
            return None
        if central := self.notices.central(self.judge(number, arrays)):
            self.notices.loss(central)
            self.emit(Judged(number, central))
        return central

    def _is_last(self, number: int, central: Scores | None) -> bool:
        target = self.experiment.evaluate.target_accuracy
        if central is not None and target and "accuracy" not in central:
            raise RunError(
                f"evaluate.target-accuracy is {target}, but the model logs no accuracy on the test "
                f"set; log val_accuracy in its validation_step, or set the key to 0"
            )
        last = is_reached(target, central) or number == self.experiment.strategy.rounds
        return last or self._is_spent(number + 1)

    def _is_spent(self, number: int) -> bool:
        """Whether the privacy budget does not allow a round, which is said."""
        if self.private is None or (why := self.private.why_over(number)) is None:
            return False
        self.emit(Noticed(why))
        return True

    def _finish(self, done: _Round) -> None:
        """Emit the event of a finished round."""
        number, trained, evaluated = done.trained.round, done.trained, done.evaluated
        if not evaluated.is_complete:  # the run ends early
            evaluated = Replies(number, "evaluate")
        self._require(number, evaluated, min(1, len(evaluated.cohort)))
        federated = federated_scores(self.strategy, evaluated, self.merge, self.notices)
        self.notices.loss(federated)
        self.emit(
            RoundFinished(
                round=number,
                central=done.central,
                federated=federated,
                train=done.train,
                cohort=trained.cohort,
                failures=failures_of(trained, evaluated),
                seconds=done.laps.seconds(),
                bytes=traffic_of(trained, evaluated),
                weights_sha256=done.digest.result(),
                privacy=done.spent,
            )
        )

    def _post(
        self, phase: Phase, number: int, arrays: ArrayRecord, *, can_wait: bool = False
    ) -> Replies:
        """Let the strategy choose clients and settings, and post the tasks."""
        self._gather(number, phase)
        hook = getattr(self.strategy, f"configure_{phase}")
        seen = without(arrays, self.buffers) if self.buffers else arrays
        grid = self.exchange.grid
        with seeds.python_random(self.experiment.seed, f"sample-{phase}", number):
            nodes, config = offered(grid, self.experiment, phase, number), ConfigRecord()
            if self.private is not None and phase == "train":
                nodes = self.private.grid(grid, number) or nodes
                config = self.private.settings()
            try:
                messages = by_partition(hook(number, seen, config, nodes), grid.partitions)
            except Exception as error:
                name = self.experiment.strategy.name
                raise RunError(
                    f"round {number}: strategy {name}: {describe_error(error)}"
                ) from error
        average = phase == "train" and grid.averages and self._aggregation.takes_mean
        model = arrays if self.buffers else None
        batches = batches_of(number, phase, messages, model, average=average)
        return self.exchange.post(number, phase, batches, messages, can_wait=can_wait)

    def _gather(self, number: int, phase: str) -> None:
        """Wait for disconnected clients; continue without them if enough are left."""
        spec, grid = self.experiment, self.exchange.grid
        least = spec.strategy.min_evaluate_nodes if phase == "evaluate" else spec.least_clients
        there = grid.gather(spec.runtime.return_wait)
        if there < least and not grid.wait(least, spec.runtime.client_wait):
            raise RoundError(
                f"round {number}: {len(grid.partitions)} of {spec.data.clients} clients are "
                f"connected, {least} needed; none reconnected within "
                f"{spec.runtime.client_wait:g} s"
            )

    def _require(self, number: int, replies: Replies, least: int) -> None:
        """Raise `RoundError` unless enough clients succeeded, at least one of a cohort."""
        if len(replies.metrics) >= max(least, 1 if replies.cohort else 0):
            return
        if not replies.cohort and self._aggregation.takes_none:
            return
        if not replies.cohort:
            raise RoundError(f"round {number}: the strategy sampled no client, {least} needed")
        raise RoundError(
            f"round {number}: {len(replies.metrics)} of {len(replies.cohort)} clients "
            f"succeeded, {least} needed; {replies.named_failures()}"
        )


class Ended(NamedTuple):
    """The result of the rounds."""

    arrays: ArrayRecord
    """The global model."""
    evaluated: Replies
    """Its evaluation by clients."""
    round: int
    """The last round."""


def is_reached(target: float, central: Scores | None) -> bool:
    """Whether a model with these scores on the test set ends a run with this target accuracy."""
    return target > 0 and central is not None and central.get("accuracy", 0.0) >= target


@dataclass(frozen=True)
class _Round:
    """A round whose evaluation by clients may still be incomplete."""

    arrays: ArrayRecord
    """The new global model."""
    digest: Future[str]
    """Its SHA-256."""
    trained: Replies
    train: Scores | None
    central: Scores | None
    evaluated: Replies
    is_last: bool
    laps: Laps
    spent: Mapping[str, float] | None
    """What privacy the run has spent with it."""
