"""The table of metrics: the source of the exporters, dashboards, alerts and docs/metrics.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.metrics import MetricWrapperBase

Kind: TypeAlias = Literal["counter", "gauge", "histogram", "info"]

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)  # histogram buckets
PHASES = ("train", "aggregate", "evaluate")
STATES = ("running", "completed", "degraded", "failed", "interrupted")
LABELLED_CLIENTS = 100  # with more clients there are no series by client


@dataclass(frozen=True)
class Metric:
    """One row of the table."""

    name: str
    """Exported name, unit and ``_total`` included."""
    kind: Kind
    unit: str
    """Base unit, or what is counted."""
    help: str
    labels: tuple[str, ...] = ()


SERVER_METRICS = (
    Metric("fl_run_info", "info", "1", "The run: its experiment, strategy, dataset, model and privacy (none, central, local, example, secure aggregation).", ("name", "strategy", "dataset", "model", "seed", "privacy")),
    Metric("fl_run_state", "gauge", "0 or 1", "1 for the state that the run is in.", ("state",)),
    Metric("fl_run_started_timestamp_seconds", "gauge", "seconds", "When the current or the last run began, Unix time; 0 before any."),
    Metric("fl_run_rounds", "gauge", "rounds", "Rounds of the experiment."),
    Metric("fl_run_round", "gauge", "rounds", "The last round that the run completed."),
    Metric("fl_run_current_round", "gauge", "rounds", "The round of the run that began last; 0 before the first."),
    Metric("fl_run_round_mean_seconds", "gauge", "seconds", "Mean duration of the run's rounds; 0 before the first is complete."),
    Metric("fl_run_answers", "gauge", "answers", "Replies of clients in this run, failed ones included."),
    Metric("fl_run_failures", "gauge", "failures", "Replies of this run that failed or did not arrive, by reason.", ("reason",)),
    Metric("fl_rounds_total", "counter", "rounds", "Rounds completed."),
    Metric("fl_round_started_timestamp_seconds", "gauge", "seconds", "When the current round began, Unix time; 0 while none is in progress."),
    Metric("fl_phase_started_timestamp_seconds", "gauge", "seconds", "When the current phase's messages were sent, Unix time; 0 while no run is in progress."),
    Metric("fl_last_round_seconds", "gauge", "seconds", "Duration of each phase of the run's last completed round.", ("phase",)),
    Metric("fl_last_round_bytes", "gauge", "bytes", "Payload of the messages of the run's last completed round.", ("direction",)),
    Metric("fl_round_duration_seconds", "histogram", "seconds", "Duration of a whole round."),
    Metric("fl_round_phase_duration_seconds", "histogram", "seconds", "Duration of a round's phase: train, aggregate, evaluate.", ("phase",)),
    Metric("fl_global_loss", "gauge", "loss", "Loss of the global model: central on the test set, federated on the clients' held-out parts.", ("source",)),
    Metric("fl_global_accuracy", "gauge", "ratio", "Accuracy of the global model, 0 to 1, by source as for the loss.", ("source",)),
    Metric("fl_global_loss_lowest", "gauge", "loss", "Lowest finite loss of the global model in this run.", ("source",)),
    Metric("fl_global_accuracy_highest", "gauge", "ratio", "Highest accuracy of the global model in this run.", ("source",)),
    Metric("fl_clients_expected", "gauge", "clients", "Clients of the experiment."),
    Metric("fl_clients_connected", "gauge", "clients", "Clients that the server can reach."),
    Metric("fl_client_connected", "gauge", "0 or 1", "1 while the server can reach the client that holds the partition.", ("partition",)),
    Metric("fl_clients_selected", "gauge", "clients", "Clients with a task in the current phase."),
    Metric("fl_clients_awaited", "gauge", "clients", "Clients whose reply the server waits for in the current phase."),
    Metric("fl_client_awaited", "gauge", "0 or 1", "1 while the server waits for the reply of the client that holds the partition.", ("partition",)),
    Metric("fl_client_moves_total", "counter", "clients", "Clients that joined or left a run in progress, came back, or were refused, with round.late = 'join'.", ("move",)),
    Metric("fl_client_failures_total", "counter", "failures", "Replies that failed or did not arrive: error, diverged, deadline, lost or rejected.", ("reason",)),
    Metric("fl_message_bytes_total", "counter", "bytes", "Payload of the messages to (down) and from (up) the clients.", ("direction",)),
    Metric("fl_privacy_epsilon", "gauge", "epsilon", "Epsilon that this run has spent, at the experiment's delta; no series without differential privacy.", ("mode", "delta")),
    Metric("fl_privacy_budget_epsilon", "gauge", "epsilon", "Largest epsilon that this run may spend; no series without a limit.", ("mode",)),
    Metric("fl_privacy_clip_norm", "gauge", "norm", "Largest norm of a client's update (central, local) or of an example's gradient (example) in the last round.", ("mode",)),
)  # fmt: skip
"""What the server knows."""

CLIENT_METRICS = (
    Metric("fl_client_fits_total", "counter", "fits", "Local trainings that a client finished.", ("partition",)),
    Metric("fl_client_epochs_total", "counter", "epochs", "Local epochs that a client finished.", ("partition",)),
    Metric("fl_client_examples_total", "counter", "examples", "Examples that a client trained on, counted in every epoch.", ("partition",)),
    Metric("fl_client_fit_duration_seconds", "histogram", "seconds", "Duration of a client's local training.", ("partition",)),
    Metric("fl_client_fit_mean_seconds", "gauge", "seconds", "Mean duration of a client's last five local trainings of this run.", ("partition",)),
    Metric("fl_client_train_loss", "gauge", "loss", "Mean loss over the last local epoch of a client's training.", ("partition",)),
    Metric("fl_client_loss", "gauge", "loss", "Loss of the global model on a client's held-out part.", ("partition",)),
    Metric("fl_client_accuracy", "gauge", "ratio", "Accuracy of the global model on a client's held-out part, 0 to 1.", ("partition",)),
)  # fmt: skip
"""What a client knows: exported by the run itself in one process, by each client on a network."""

NODE_METRICS = (
    Metric("fl_client_info", "info", "1", "The client's name, and the partition that it trains on; none before it has one.", ("name", "partition")),
    Metric("fl_client_last_message_bytes", "gauge", "bytes", "Payload of the last message to (down) and from (up) this client in this run.", ("partition", "direction")),
    Metric("fl_client_message_bytes_total", "counter", "bytes", "Payload of the messages to (down) and from (up) this client.", ("partition", "direction")),
    Metric("fl_client_crashes_total", "counter", "crashes", "Processes of this client that were killed before they replied."),
)  # fmt: skip
"""What only a client's container knows."""

CONTAINER_METRICS = (
    Metric("fl_container_cpu_seconds_total", "counter", "seconds", "CPU time of the container."),
    Metric("fl_container_cpu_limit_cores", "gauge", "cores", "Cores that the container may use; those of the machine without a limit."),
    Metric("fl_container_memory_bytes", "gauge", "bytes", "Memory that the container uses, without file cache that can be released."),
    Metric("fl_container_memory_limit_bytes", "gauge", "bytes", "Memory that the container may use; that of the machine without a limit."),
)  # fmt: skip
"""Resources that the SuperLink's and each client's container use."""

HEALTH_METRIC = Metric("fl_container_failing", "gauge", "0 or 1", "1 while the container cannot do its work: its program ended by itself and is not running again, or its messages' processes are killed one after the other.")  # fmt: skip
"""What a container's health check reads."""

REFUSED_METRIC = Metric("fl_clients_refused", "gauge", "claims", "Times that a name was claimed with a key that it does not belong to; flsim status names them.")  # fmt: skip
"""What the register of a network's clients counts."""

CERTIFICATE_METRIC = Metric("fl_certificate_remaining_seconds", "gauge", "seconds", "Time until the certificate of the CA (ca) or of the SuperLink (superlink) expires; negative after it.", ("certificate",))  # fmt: skip
"""What the SuperLink's container knows of its certificates."""

METRICS = SERVER_METRICS + CLIENT_METRICS
"""The metrics of a run in one process."""

ALL_METRICS = (
    *(*METRICS, *NODE_METRICS, *CONTAINER_METRICS),
    *(HEALTH_METRIC, REFUSED_METRIC, CERTIFICATE_METRIC),
)
"""Every metric. The exporters, dashboards, alerts and docs/metrics.md are made from this table."""


def make_metric(metric: Metric, registry: CollectorRegistry) -> MetricWrapperBase:
    """A row of the table as a metric of prometheus_client, in a registry."""
    if metric.kind == "info":
        return Info(metric.name.removesuffix("_info"), metric.help, registry=registry)
    if metric.kind == "histogram":
        return Histogram(
            metric.name, metric.help, metric.labels, registry=registry, buckets=SECONDS
        )
    kind = Counter if metric.kind == "counter" else Gauge
    return kind(metric.name, metric.help, metric.labels, registry=registry)


class Series:
    """The metrics of some rows of the table, in a registry.

    Parameters
    ----------
    rows : sequence of Metric
        Rows of the table.
    registry : CollectorRegistry
        Where to register them.
    """

    def __init__(self, rows: Sequence[Metric], registry: CollectorRegistry) -> None:
        self._metrics: dict[str, Any] = {m.name: make_metric(m, registry) for m in rows}

    def __contains__(self, name: str) -> bool:
        return name in self._metrics

    def counter(self, name: str, /, **labels: str) -> Counter:
        """A counter's series."""
        return self._child(name, labels)  # type: ignore[no-any-return]

    def gauge(self, name: str, /, **labels: str) -> Gauge:
        """A gauge's series."""
        return self._child(name, labels)  # type: ignore[no-any-return]

    def histogram(self, name: str, /, **labels: str) -> Histogram:
        """A histogram's series."""
        return self._child(name, labels)  # type: ignore[no-any-return]

    def inform(self, name: str, /, **labels: str) -> None:
        """Set the labels of an info."""
        self._metrics[name].info(labels)

    def clear(self, *names: str) -> None:
        """Remove all series of metrics with labels."""
        for name in names:
            self._metrics[name].clear()

    def _child(self, name: str, labels: Mapping[str, str]) -> Any:
        metric = self._metrics[name]
        return metric.labels(**labels) if labels else metric
