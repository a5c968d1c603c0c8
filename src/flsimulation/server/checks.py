"""Checks every reply against what was sent: what is not as requested is left out, and counted.

No strategy sees a reply before it was checked. In place of a bad one stands an outcome with the
reason ``rejected``; the other clients of the same message are not affected, unless the mean model in
it contains the bad one's.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from flsimulation.data.federated import FederatedData
from flsimulation.errors import ClientError
from flsimulation.events import Phase
from flsimulation.messages.batch import Batch, Mean, Outcome, Reply
from flsimulation.messages.received import (
    check_trained,
    checked_metrics,
    checked_states,
    model_like,
    rejected,
)

Held: TypeAlias = Callable[[int, Phase], "int | None"]
"""Examples that a client holds for a phase, of its partition and the phase; None if not known."""

_STATES_BYTES = 256 * 2**20  # of a client's metric objects: predictions for all its examples


def not_known(_: int, __: Phase) -> None:
    """Nothing is known of what clients hold."""


def held_by(data: FederatedData, declared: Callable[[int], int | None]) -> Held:
    """What clients hold of a federation's data, which need not be here.

    Parameters
    ----------
    data : FederatedData
        The data of the clients that were there before the first round.
    declared : callable
        Returns the examples that a client of a partition declared later; None for those.
    """

    def held(partition: int, phase: Phase) -> int:
        if (size := declared(partition)) is not None:
            held_out = data.held_out_of(size)
            return size - held_out if phase == "train" else held_out
        return data.train_size(partition) if phase == "train" else data.validation_size(partition)

    return held


@dataclass(frozen=True)
class Checks:
    """Checks replies.

    Parameters
    ----------
    held : callable
        Examples that a client holds.
    """

    held: Held = not_known
    weighs_clients: bool = False
    """Whether all clients weigh the same in a mean."""

    def checked(self, reply: Reply, batch: Batch, waiting: Container[tuple[int, Phase]]) -> Reply:
        """The reply with an error in place of every outcome that must not be used.

        Outcomes of other tasks are left out: what a client holds is known of those only that exist.

        Parameters
        ----------
        reply : Reply
            As received.
        batch : Batch
            The tasks that it replies to, with the model that was sent.
        waiting : container
            Partition and phase of the tasks that have no outcome yet.
        """
        outcomes = [
            self._checked(outcome, reply, batch)
            for outcome in reply.outcomes
            if (outcome.partition, outcome.phase) in waiting
        ]
        if reply.mean is None:
            return replace(reply, outcomes=outcomes)
        try:
            return replace(reply, outcomes=outcomes, mean=self._mean(reply, outcomes, batch))
        except ClientError as error:
            outcomes = [_failed(o, error) if _is_in_mean(o) else o for o in outcomes]
            return replace(reply, outcomes=outcomes, mean=None)

    def _checked(self, outcome: Outcome, reply: Reply, batch: Batch) -> Outcome:
        if outcome.error is not None:
            return _failed(outcome, outcome.error)
        try:
            held = self.held(outcome.partition, outcome.phase)
            metrics = checked_metrics(outcome.metrics, held)
            if outcome.phase == "train":
                check_trained(metrics)
            if outcome.model is not None:
                return outcome._replace(
                    metrics=metrics, model=model_like(outcome.model, batch.model)
                )
            if outcome.phase == "train" and reply.mean is None:
                raise rejected("it sent no model")
            states = outcome.states
            states = None if states is None else checked_states(states, _STATES_BYTES)
            return outcome._replace(metrics=metrics, states=states)
        except ClientError as error:
            return _failed(outcome, error)

    def _mean(self, reply: Reply, outcomes: Sequence[Outcome], batch: Batch) -> Mean:
        """The mean model in a reply, checked, and of these clients only. Raises `ClientError`."""
        mean, own = reply.mean, [outcome for outcome in outcomes if _is_in_mean(outcome)]
        if mean is None or not batch.average:
            raise rejected("it sent a mean model, which was not requested")
        if sum(map(_is_in_mean, reply.outcomes)) != len(own):
            raise rejected("its model is in a mean with that of a rejected client")
        weight, what = sum(int(outcome.metrics["num-examples"]) for outcome in own), "examples"
        if self.weighs_clients:
            weight, what = len(own), "clients"
        if mean.weight != weight:
            raise rejected(f"its mean model is of {mean.weight} {what}, not {weight}")
        return Mean(model_like(mean.model, batch.model), weight)


def _failed(outcome: Outcome, error: ClientError) -> Outcome:
    return Outcome(outcome.partition, outcome.phase, {}, error)


def _is_in_mean(outcome: Outcome) -> bool:
    """Whether the client's model is in its message's mean only."""
    return outcome.phase == "train" and outcome.error is None and outcome.model is None
