"""Secure aggregation: a training whose single updates the server never sees, only their sum.

A way to call the exchange: the clients' keys, sealed shares of their secrets, masked updates, and the
shares by which the masks of the sum are removed (Bell et al., CCS 2020; docs/decisions/0036). The round
loop posts a training here as it does to the exchange, and takes in one mean model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message

from flsimulation import seeds
from flsimulation.events import ClientReplied, Noticed, Phase, Sink
from flsimulation.experiment import Experiment
from flsimulation.messages.arrays import HeldArray, joined
from flsimulation.messages.batch import Batch, Mean, Reply, Task
from flsimulation.messages.vectors import MASKED, NEXT, changed, entries_of
from flsimulation.privacy.field import Field, weighs_clients
from flsimulation.privacy.graph import is_enough, neighbours_of, plan_for
from flsimulation.privacy.masks import SEED_BYTES, PublicKeys
from flsimulation.privacy.unmasking import Shares, mask_of_sum
from flsimulation.server.exchange import Exchange
from flsimulation.server.grid import PartitionedGrid
from flsimulation.server.replies import Replies
from flsimulation.server.secured import (
    Client,
    Secured,
    add_traffic,
    bytes_in,
    content_of,
    cut_by,
    failed,
    hidden_by,
    take_in,
)


class SecureExchange:
    """An exchange whose trainings are added by secure aggregation.

    Parameters
    ----------
    exchange : Exchange
        Sends the tasks.
    experiment : Experiment
        Its section ``privacy`` says how many clients may drop out or be corrupt.
    emit : callable
        Called with the events; at once with a line on what is hidden.

    Raises
    ------
    InputError
        If a round has too few clients for those that may drop out or be corrupt.
    """

    def __init__(self, exchange: Exchange, experiment: Experiment, emit: Sink) -> None:
        self._exchange, self._emit = exchange, emit
        self._seed, self._last = experiment.seed, experiment.strategy.rounds
        self._spec = experiment.privacy
        self._is_whole = experiment.cohort_size == experiment.data.clients
        self._known: dict[int, Client] = {}  # clients with keys that were not used yet
        self._ahead: Secured | None = None  # of the next round, whose clients sealed their shares
        self._open: tuple[Secured, Replies] | None = None
        self._cut = False  # whether it was said that numbers were beyond the range
        emit(Noticed(hidden_by(experiment)))

    @property
    def grid(self) -> PartitionedGrid:
        """The exchange's grid."""
        return self._exchange.grid

    def post(
        self,
        round: int,
        phase: Phase,
        batches: Sequence[Batch],
        messages: Mapping[int, Message] | None = None,
        *,
        can_wait: bool = False,
    ) -> Replies:
        """Post the tasks of one phase, as `Exchange.post`; of a training, after the phases of keys.

        Raises
        ------
        RoundError
            If too few clients take part in a training.
        """
        if phase != "train" or not batches:
            return self._exchange.post(round, phase, batches, messages, can_wait=can_wait)
        (batch,) = batches  # the strategies that are allowed send one model
        cohort = sorted(task.partition for task in batch.tasks)
        assumed = self._spec.assumed_dropped, self._spec.assumed_corrupt
        if self._spec.mode == "central" and not (
            self._is_whole or is_enough(len(cohort), *assumed)
        ):
            return self._exchange.post(round, phase, [], messages)  # as an empty sample
        opened, before = self._begun(round, batch.model, cohort)
        trained = self._post_training(opened, batch, messages)
        self._open = opened, trained
        add_traffic(trained, before)
        trained.cohort = tuple(cohort)
        failures = {p: error for replies in before for p, error in replies.failures.items()}
        for partition, error in sorted(failures.items()):
            trained.failures[partition] = error
            event = ClientReplied(round, "train", partition, reason=error.reason, error=str(error))
            self._emit(event)
        return trained

    def outcomes(self) -> Iterator[Reply]:
        """Yield the outcomes, as `Exchange.outcomes`; then remove the masks of a training's sum.

        Raises
        ------
        RoundError
            If too few clients are left; then no mask is removed.
        """
        yield from self._exchange.outcomes()
        if self._open is not None:
            (opened, trained), self._open = self._open, None
            try:
                self._unmask(opened, trained)
            finally:
                trained.models.clear()

    def _begun(
        self, round: int, model: ArrayRecord, cohort: Sequence[int]
    ) -> tuple[Secured, list[Replies]]:
        """A round whose clients have sealed shares, with the last round's sum or in phases of their own."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and sorted(ahead.clients) == cohort:
            return replace(ahead, model=model), []
        with_keys = self._keys(round, cohort)
        known = {p: self._known.pop(p) for p in cohort if p in self._known}
        opened, with_shares = self._shares(round, model, known, with_keys)
        return opened, [with_keys, with_shares]

    def _keys(self, round: int, cohort: Sequence[int]) -> Replies:
        """Learn the keys of the clients that sent none with their last update."""
        missing = [partition for partition in cohort if partition not in self._known]
        replies = self._post_apart(round, "keys", dict.fromkeys(missing))

        def read(partition: int, content: Mapping[str, str]) -> None:
            self._learn(partition, round, replies, content)

        take_in(replies, read)
        return replies

    def _learn(
        self, partition: int, made: int, replies: Replies, content: Mapping[str, str]
    ) -> None:
        keys = PublicKeys.of(bytes_in(content, "keys"))
        keys.check_order()
        examples = int(replies.metrics[partition]["num-examples"])
        self._known[partition] = Client(made, keys, examples)

    def _shares(
        self, round: int, model: ArrayRecord, known: Mapping[int, Client], with_keys: Replies
    ) -> tuple[Secured, Replies]:
        """Draw the graph, and let each client seal shares of its secrets for its neighbours."""
        try:
            opened = self._planned(round, model, known)
        except ValueError as error:
            raise failed(round, str(error), with_keys) from None
        replies = self._post_apart(round, "shares", {p: opened.place_of(p) for p in known})
        take_in(replies, opened.take_shares)
        opened.senders = frozenset(replies.metrics)
        opened.dropped = {"keys": len(with_keys.failures), "shares": len(replies.failures)}
        self._require(opened, len(opened.senders), "sealed shares of their keys", replies)
        return opened, replies

    def _planned(self, round: int, model: ArrayRecord, known: Mapping[int, Client]) -> Secured:
        """A round's graph. Raises ``ValueError`` if its clients are too few."""
        plan = plan_for(len(known), self._spec.assumed_dropped, self._spec.assumed_corrupt)
        draws = seeds.rng(self._seed, "secure-graph", round)
        return Secured(model, plan, known, neighbours_of(sorted(known), plan.neighbours, draws))

    def _post_training(
        self, opened: Secured, batch: Batch, messages: Mapping[int, Message] | None
    ) -> Replies:
        """Post the training to the clients that sealed shares; with it they send their next keys."""
        number = batch.tasks[0].round
        more = {"examples": opened.largest, "next": 0 if number == self._last else number + 1}
        tasks = [
            task._replace(
                own=ConfigRecord({**opened.place_of(p), "senders": opened.near(p), **more})
            )
            for task in batch.tasks
            if (p := task.partition) in opened.senders
        ]
        like = joined({MASKED: HeldArray(np.zeros(entries_of(batch.model), np.uint32))})
        own = replace(batch, tasks=tasks, average=False, returns=like)
        return self._exchange.post(number, "train", [own], messages)

    def _unmask(self, opened: Secured, trained: Replies) -> None:
        """Put the mean of the clients' models in place of their masked updates."""
        alive = frozenset(trained.models)
        opened.dropped["train"] = len(opened.senders - alive)
        self._require(opened, len(alive), "sent a masked update", trained)
        if not self._cut and (cut := cut_by(trained, self._spec.largest_change)):
            self._cut = True
            self._emit(Noticed(cut))
        ahead = self._following(opened, trained)
        replies = self._post_unmasking(opened, alive, trained.round, ahead)
        shares = self._returned(opened, replies, ahead)
        opened.dropped["unmask"] = len(replies.failures)
        total = np.zeros(entries_of(opened.model), np.uint32)
        for partition in alive:
            total += trained.models[partition][MASKED].numpy()
        public = {p: client.keys for p, client in opened.clients.items()}
        try:
            total -= mask_of_sum(public, opened.graph, opened.senders, alive, shares, len(total))
        except ValueError as error:
            raise failed(trained.round, str(error), replies) from None
        change, weight = Field.of(self._spec, opened.plan.clients).decoded(total), len(alive)
        if not weighs_clients(self._spec):
            weight = sum(int(trained.metrics[partition]["num-examples"]) for partition in alive)
            change *= opened.largest
        trained.means[min(alive)] = Mean(changed(opened.model, change / weight), weight)
        add_traffic(trained, [replies])
        sizes = {"neighbours": opened.plan.neighbours, "threshold": opened.plan.threshold}
        trained.secure = sizes | opened.dropped

    def _following(self, opened: Secured, trained: Replies) -> Secured | None:
        """The next round, if it is that of the same clients; takes in the keys for it.

        Keys that cannot be read are requested again. A round of other clients begins with its shares.
        """
        for p in trained.models:
            with suppress(ValueError):
                self._learn(p, trained.round + 1, trained, content_of(trained, p))
        same = trained.models.keys() == opened.clients.keys() <= self._known.keys()
        if not (self._is_whole and same):
            return None
        known = {partition: self._known.pop(partition) for partition in opened.clients}
        return self._planned(trained.round + 1, opened.model, known)

    def _post_unmasking(
        self, opened: Secured, alive: frozenset[int], round: int, ahead: Secured | None
    ) -> Replies:
        """Request a share of one secret of each client, and sealed shares for the next round."""
        tasks = dict[int, dict[str, Any] | None]()
        for partition in alive:
            near = opened.near(partition)
            living = [other for other in near if other in alive]
            gone = [other for other in near if other not in alive]
            sealed = [opened.sealed[partition][other] for other in (*living, *gone)]
            following = {} if ahead is None else ahead.place_of(partition, NEXT)
            own = {"others": [*living, *gone], "alive": len(living), "sealed": sealed}
            own |= {"survivors": len(alive), **opened.place_of(partition), **following}
            tasks[partition] = own
        return self._post_apart(round, "unmask", tasks)

    def _returned(self, opened: Secured, replies: Replies, ahead: Secured | None) -> Shares:
        """The shares that clients returned; takes in the sealed ones for the next round."""
        shares = Shares(opened.plan.threshold, {partition: {} for partition in opened.senders})

        def read(partition: int, content: Mapping[str, str]) -> None:
            near = opened.near(partition)
            found = {other: bytes_in(content, other, SEED_BYTES) for other in near}
            if ahead is not None:
                ahead.take_shares(partition, content, NEXT)
            for other, share in found.items():
                shares.found[other][opened.graph[other].index(partition)] = share

        take_in(replies, read)
        if ahead is not None and not replies.failures:
            ahead.senders, ahead.dropped = frozenset(ahead.clients), {"keys": 0, "shares": 0}
            self._ahead = ahead
        return shares

    def _post_apart(
        self, round: int, phase: Phase, own: Mapping[int, dict[str, Any] | None]
    ) -> Replies:
        """Post a phase without a model, and wait for its outcomes."""
        if not own:
            return Replies(round, phase)
        settings = ConfigRecord()
        made = {p: ConfigRecord(mine) if mine else None for p, mine in sorted(own.items())}
        tasks = [Task(p, phase, round, settings, mine) for p, mine in made.items()]
        replies = self._exchange.post(round, phase, [Batch(ArrayRecord(), tasks)], apart=True)
        for _ in self._exchange.outcomes():
            pass
        return replies

    def _require(self, opened: Secured, count: int, done: str, replies: Replies) -> None:
        """Raise `RoundError` if so few clients are left that the sum would say too much of one."""
        plan = opened.plan
        if count < plan.least:
            raise failed(
                replies.round,
                f"{count} of {plan.clients} clients {done}, {plan.least} needed "
                f"(privacy.assumed-dropped {self._spec.assumed_dropped:g}); no mask was removed",
                replies,
            )
