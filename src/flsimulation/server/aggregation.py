"""Aggregates a round's results to the new global model: by the strategy, or as a weighted mean."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, Strategy

from flsimulation.errors import RoundError, RunError, describe_error
from flsimulation.internals.flower_messages import aggregate_metricrecords
from flsimulation.messages.arrays import joined
from flsimulation.messages.batch import Mean, Outcome
from flsimulation.messages.codec import plain_reply
from flsimulation.messages.content import ARRAYS, model_of
from flsimulation.messages.weights import (
    average_of,
    first_diverged,
    mean_of,
    unchanged,
    with_types_of,
    without,
)
from flsimulation.server.private import Central, Spending
from flsimulation.server.replies import Replies

_ANY_NODE = 1  # that a mean of many is said to come from


@dataclass(frozen=True)
class Aggregation:
    """How the clients' models are aggregated.

    Parameters
    ----------
    strategy : Strategy
        One of Flower's.
    name : str
        Name of the strategy, for errors.
    buffers : frozenset of str
        Arrays that are not passed to the strategy; they are averaged over the clients.
    constants : frozenset of str
        Arrays that no optimizer trains: the same in all clients' models, they are that.
    private : Spending or None
        What hides the clients; where it averages, the strategy gets one result, its noisy mean.
    """

    strategy: Strategy
    name: str
    buffers: frozenset[str]
    constants: frozenset[str] = frozenset()
    private: Spending | None = None

    @property
    def takes_mean(self) -> bool:
        """Whether a mean of clients' models is as good as each one's."""
        return self.is_mean or isinstance(self.private, Central)

    @property
    def takes_none(self) -> bool:
        """Whether a round may have no client at all, as a sample has that may be of any size."""
        return isinstance(self.private, Central)

    @property
    def is_mean(self) -> bool:
        """Whether the strategy only averages the models, weighted by examples."""
        own = self.strategy
        return (
            isinstance(own, FedAvg)
            and type(own).aggregate_train is FedAvg.aggregate_train
            and own.train_metrics_aggr_fn is aggregate_metricrecords
            and own.weighted_by_key == "num-examples"
            and not self.buffers
        )

    def aggregate(
        self, number: int, trained: Replies, before: ArrayRecord
    ) -> tuple[ArrayRecord, MetricRecord | None]:
        """The new global model and the clients' training metrics.

        An array that no client changed stays as it is, bit for bit, whatever the strategy makes of
        it: frozen weights and constant buffers are not trained.

        Parameters
        ----------
        number : int
            The round.
        trained : Replies
            The clients' results.
        before : ArrayRecord
            The global model from which they trained.

        Raises
        ------
        RunError
            If the strategy fails, or numbers of the model are no longer finite.
        """
        try:
            if isinstance(self.private, Central):
                results = self._privately(number, trained, before, self.private)
            elif trained.means:
                results = _mean(trained, before)
            else:
                results = self._by_strategy(number, trained, before)
        except RoundError:
            raise
        except Exception as error:
            raise RunError(
                f"round {number}: strategy {self.name}: {describe_error(error)}"
            ) from error
        if (bad := first_diverged(results[0], before)) is not None:
            raise RunError(
                f"round {number}: the aggregated weights {bad} are not finite; "
                f"lower the server's or the clients' learning rate"
            )
        return results

    def _by_strategy(
        self, number: int, trained: Replies, before: ArrayRecord
    ) -> tuple[ArrayRecord, MetricRecord | None]:
        results = trained.results()
        kept = self._kept([model_of(result) for result in results], before)
        sent = joined(model_of(results[0]))  # a copy: qfedavg empties the clients' records
        buffers = self._take_buffers(trained, results)
        arrays, metrics = self.strategy.aggregate_train(number, results)
        if arrays is None:
            raise RoundError(
                f"round {number}: the strategy returned no model for {len(results)} results"
            )
        if some := means_over_some(trained):
            metrics = MetricRecord({**(metrics or {}), **some})
        arrays = with_types_of(joined({**arrays, **buffers}), sent)
        return joined({name: kept.get(name, array) for name, array in arrays.items()}), metrics

    def _privately(
        self, number: int, trained: Replies, before: ArrayRecord, private: Central
    ) -> tuple[ArrayRecord, MetricRecord | None]:
        """The strategy's step with the noisy mean in place of all results."""
        mean = private.mean(number, trained, before)
        metrics = {"num-examples": 1.0}
        request = Message(RecordDict(), _ANY_NODE, MessageType.TRAIN)
        model = without(mean, self.buffers)
        result = plain_reply(request, Outcome(0, "train", metrics, None, joined(model)))
        arrays, _ = self.strategy.aggregate_train(number, [result])
        if arrays is None:
            raise RoundError(f"round {number}: the strategy returned no model")
        moved = with_types_of(joined(dict(arrays)), before)
        own = {name: moved[name] for name in private.names if name in moved}
        found = joined({name: own.get(name, array) for name, array in before.items()})
        return found, MetricRecord({**mean_metrics(trained)}) if trained.metrics else None

    def _kept(self, models: list[ArrayRecord], before: ArrayRecord) -> dict[str, Array]:
        """What is no strategy's business; found before one works in its clients' arrays."""
        first = models[0]
        same = unchanged(self.constants, first, models[1:])
        kept = unchanged(first, before, models)
        return {name: first[name] for name in same} | {name: before[name] for name in kept}

    def _take_buffers(self, trained: Replies, results: list[Message]) -> dict[str, Array]:
        """Average the buffers, and remove them from the results."""
        if not self.buffers:
            return {}
        models = [model_of(result) for result in results]
        weights = [trained.metrics[p]["num-examples"] for p in sorted(trained.metrics)]
        for result, model in zip(results, models, strict=True):
            result.content[ARRAYS] = without(model, self.buffers)
        return average_of(self.buffers, models, weights)


def _mean(trained: Replies, before: ArrayRecord) -> tuple[ArrayRecord, MetricRecord | None]:
    """The mean of the mean models, and of the models of clients that trained separately."""
    alone = {p: Mean(m, int(trained.metrics[p]["num-examples"])) for p, m in trained.models.items()}
    parts = [part for _, part in sorted({**alone, **trained.means}.items())]
    models, weights = [part.model for part in parts], [part.weight for part in parts]
    mean = mean_of(models, weights)
    kept = {name: before[name] for name in unchanged(mean, before, models)}
    mean = joined({name: kept.get(name, array) for name, array in mean.items()})
    return mean, MetricRecord({**mean_metrics(trained)})


def mean_metrics(replies: Replies) -> dict[str, float]:
    """The clients' metrics, averaged and weighted by examples as in Flower, all at once."""
    shared, _ = replies.names()
    names = [name for name in shared if name != "num-examples"]
    partitions = sorted(replies.metrics)
    numbers = np.array([[replies.metrics[p][name] for name in names] for p in partitions])
    weights = np.array([replies.metrics[p]["num-examples"] for p in partitions], np.float64)
    means = dict(zip(names, (weights / weights.sum() @ numbers).tolist(), strict=True))
    return means | means_over_some(replies)


def means_over_some(replies: Replies) -> dict[str, float]:
    """Means of the metrics that only some clients have, over these, weighted by examples."""
    found = {}
    for name in replies.names()[1]:
        clients = [own for _, own in sorted(replies.metrics.items()) if name in own]
        weights = [own["num-examples"] for own in clients]
        if sum(weights) > 0:
            found[name] = float(np.average([own[name] for own in clients], weights=weights))
    return found
