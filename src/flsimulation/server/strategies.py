"""Flower's strategy object for the [strategy] section of an experiment."""

from __future__ import annotations

from typing import Any

from flwr.serverapp import strategy as flower

from flsimulation.experiment import Experiment
from flsimulation.experiment.strategy import STRATEGIES
from flsimulation.server.sampling import LISTED_CLIENTS

AVERAGING = frozenset({"fedavg", "fedprox"})
"""Strategies whose new model is the mean of the clients' models."""

MOVING_THE_MODEL = frozenset({"fedavgm", "fedadam", "fedadagrad", "fedyogi", "qfedavg"})
"""Strategies that move the global model along the clients' mean change instead of averaging.

A step with momentum or a server learning rate can leave the valid range of a buffer: a running
variance below zero causes NaN at the next evaluation. With these strategies, buffers are therefore
averaged (docs/decisions/0005)."""


def build_strategy(experiment: Experiment, *, evaluate: bool = True) -> flower.Strategy:
    """Flower's strategy object with the experiment's parameters, otherwise unmodified.

    Parameters
    ----------
    experiment : Experiment
        Its strategy section has the class and the parameters.
    evaluate : bool
        Whether clients can evaluate; otherwise their evaluation is off.
    """
    spec = experiment.strategy
    large = experiment.data.clients > LISTED_CLIENTS  # then it sees only the cohort
    sampled = experiment.privacy.mode == "central"  # by Poisson: a sample may have no client
    least = experiment.cohort_size if large else spec.min_train_nodes
    least = 0 if sampled else least
    own: dict[str, Any] = {key.replace("-", "_"): value for key, value in spec.parameters.items()}
    if spec.name == "qfedavg":
        own["train_loss_key"] = "loss"  # the name under which the clients report it
    strategy: flower.Strategy = getattr(flower, STRATEGIES[spec.name])(
        fraction_train=1.0 if sampled else spec.fraction_train,
        fraction_evaluate=spec.fraction_evaluate if evaluate else 0.0,
        min_train_nodes=least,
        min_evaluate_nodes=experiment.evaluated_size if large else spec.min_evaluate_nodes,
        min_available_nodes=min(least, spec.min_train_nodes),  # the round loop waits for clients
        **own,
    )
    return strategy
