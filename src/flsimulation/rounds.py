"""The round loop: Flower's strategies decide, this module sees that every round is sound.

``Strategy.start()`` of Flower gives no event per round, no deadline and no error when every client
failed; here its four hooks are called one by one, so that any Flower strategy works unmodified.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from flsimulation import seeds
from flsimulation.errors import RoundError, RunError, describe_error
from flsimulation.events import Checkpoint, RoundFinished, Scores, Sink
from flsimulation.exchange import Exchange, Replies
from flsimulation.experiment import Experiment
from flsimulation.messages import metrics_of, model_of, set_model
from flsimulation.weights import (
    average_of,
    first_not_finite,
    weights_sha256,
    with_types_of,
    without,
)

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

    def run(self, arrays: ArrayRecord, first: int = 1) -> tuple[ArrayRecord, Replies]:
        """Run round ``first`` to the last; give the global model and the last evaluation.

        Raises
        ------
        RunError
            If a round has too few results, the strategy fails, or the model diverges.
        """
        evaluated = Replies(())
        for number in range(first, self.experiment.strategy.rounds + 1):
            arrays, evaluated = self._round(number, arrays)
        return arrays, evaluated

    def _round(self, number: int, arrays: ArrayRecord) -> tuple[ArrayRecord, Replies]:
        clock = _Clock()
        # 1. The strategy samples a cohort and says what each client gets.
        messages = self._configure("train", number, arrays)
        # 2. The clients train; each answer is an event as it comes.
        trained = self.exchange.run(number, "train", messages)
        self._require(number, trained, self.experiment.round.min_results)
        clock.lap("train")
        # 3. The strategy makes the new global model of their results.
        arrays, train_scores = self._aggregate(number, trained)
        clock.lap("aggregate")
        # 4. The new model is judged on the test set and by clients on their held-out parts.
        central = self.judge(arrays) if self._judged(number) else None
        evaluated = self.exchange.run(
            number, "evaluate", self._configure("evaluate", number, arrays)
        )
        self._require(number, evaluated, min(1, len(evaluated.cohort)))
        federated = self._federated(number, evaluated)
        clock.lap("evaluate")
        # 5. What happened is told; whoever listens keeps, shows or serves it.
        self.emit(Checkpoint(number, arrays, self.strategy))
        self.emit(
            RoundFinished(
                round=number,
                central=central,
                federated=federated,
                train=train_scores,
                cohort=trained.cohort,
                failures=_count(trained, evaluated),
                seconds=clock.seconds(),
                bytes=_traffic(trained, evaluated),
                weights_sha256=weights_sha256(arrays),
            )
        )
        return arrays, evaluated

    def _configure(self, phase: str, number: int, arrays: ArrayRecord) -> list[Message]:
        self._gather(number, phase)
        hook = getattr(self.strategy, f"configure_{phase}")
        seen = without(arrays, self.buffers) if self.buffers else arrays
        with seeds.python_random(self.experiment.seed, f"sample-{phase}", number):
            messages = list(hook(number, seen, ConfigRecord(), cast(Grid, self.exchange.grid)))
        if self.buffers:
            for message in messages:
                set_model(message, arrays)
        return messages

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
        if len(replies.by_partition) >= max(least, 1 if replies.cohort else 0):
            return
        named = [f"client {p}: {replies.failures[p]}" for p in sorted(replies.failures)]
        more = len(named) - _NAMED_FAILURES
        raise RoundError(
            f"round {number}: {len(replies.by_partition)} of {len(replies.cohort)} clients "
            f"succeeded, {least} needed; "
            + "; ".join(named[:_NAMED_FAILURES])
            + (f"; and {more} more" if more > 0 else "")
        )

    def _aggregate(self, number: int, trained: Replies) -> tuple[ArrayRecord, Scores | None]:
        self._require_same_metrics(number, trained)
        sent, buffers = model_of(trained.results[0]), self._take_buffers(trained)
        try:
            arrays, metrics = self.strategy.aggregate_train(number, trained.results)
        except Exception as error:
            name = self.experiment.strategy.name
            raise RunError(f"round {number}: strategy {name}: {describe_error(error)}") from error
        if arrays is None:
            raise RoundError(
                f"round {number}: the strategy made no model of {len(trained.results)} results"
            )
        arrays = with_types_of(ArrayRecord({**arrays, **buffers}), sent)
        if (bad := first_not_finite(arrays)) is not None:
            raise RunError(
                f"round {number}: the aggregated weights {bad} are not finite; "
                f"lower the server's or the clients' learning rate"
            )
        return arrays, _scores(metrics)

    def _take_buffers(self, trained: Replies) -> dict[str, Array]:
        """Average the buffers, and leave the strategy results without them."""
        if not self.buffers:
            return {}
        models = [model_of(result) for result in trained.results]
        weights = [metrics_of(result)["num-examples"] for result in trained.results]
        for result, model in zip(trained.results, models, strict=True):
            set_model(result, without(model, self.buffers))
        return average_of(self.buffers, models, weights)

    def _require_same_metrics(self, number: int, replies: Replies) -> None:
        """Flower aggregates only what all clients report; say who lacks what."""
        names = {p: metrics_of(reply).keys() for p, reply in replies.by_partition.items()}
        every = set().union(*names.values())
        for name in sorted(every):
            lacking = [partition for partition in sorted(names) if name not in names[partition]]
            if lacking:
                raise RoundError(
                    f"round {number}: the module logs {name!r} on some clients only, not on client "
                    f"{lacking[0]}; log it on every client or on none"
                )

    def _federated(self, number: int, evaluated: Replies) -> Scores | None:
        if not evaluated.cohort:
            return None
        self._require_same_metrics(number, evaluated)
        try:
            return _scores(self.strategy.aggregate_evaluate(number, evaluated.results))
        except Exception as error:
            raise RunError(f"round {number}: evaluation: {describe_error(error)}") from error

    def _judged(self, number: int) -> bool:
        every = self.experiment.evaluate.central_every
        return every > 0 and (number % every == 0 or number == self.experiment.strategy.rounds)


@dataclass
class _Clock:
    """Seconds of a round's phases."""

    began: float = field(default_factory=time.perf_counter)
    laps: dict[str, float] = field(default_factory=dict)

    def lap(self, phase: str) -> None:
        """The time since the last lap belongs to ``phase``."""
        self.laps[phase] = time.perf_counter() - self.began - sum(self.laps.values())

    def seconds(self) -> dict[str, float]:
        """All laps, and the total until now."""
        return {"total": time.perf_counter() - self.began, **self.laps}


def _scores(metrics: MetricRecord | None) -> Scores | None:
    """The strategy's aggregated metrics without those that mean nothing as an average."""
    if metrics is None:
        return None
    skip = ("num-examples", "epochs", "steps", "seconds")
    return {
        name: float(value)
        for name, value in metrics.items()
        if name not in skip and not isinstance(value, list)
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
