"""The one table of metrics, and the sink that fills it from a run's events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.process_collector import ProcessCollector

from flsimulation.errors import FAILURE_REASONS
from flsimulation.events import (
    ClientReplied,
    ClientsConnected,
    Event,
    Judged,
    PhaseStarted,
    RoundFinished,
    RunFinished,
    RunStarted,
    Scores,
)

Kind: TypeAlias = Literal["counter", "gauge", "histogram", "info"]

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)  # histogram buckets
_PHASES = ("train", "aggregate", "evaluate")
_STATES = ("running", "completed", "degraded", "failed", "interrupted")
_OF_ONE_RUN = ("fl_global_loss", "fl_global_accuracy", "fl_client_connected")
_LABELLED_CLIENTS = 100  # with more clients there are no series by client


@dataclass(frozen=True)
class Metric:
    """One row of the table."""

    name: str
    """As it is exported, unit and ``_total`` included."""
    kind: Kind
    unit: str
    """Base unit, or what is counted."""
    help: str
    labels: tuple[str, ...] = ()


SERVER_METRICS = (
    Metric("fl_run_info", "info", "1", "The run: its experiment, strategy, dataset and model.", ("name", "strategy", "dataset", "model", "seed")),
    Metric("fl_run_state", "gauge", "0 or 1", "1 for the state that the run is in.", ("state",)),
    Metric("fl_run_rounds", "gauge", "rounds", "Rounds that the experiment asks for."),
    Metric("fl_run_round", "gauge", "rounds", "The last round that the run completed."),
    Metric("fl_rounds_total", "counter", "rounds", "Rounds completed."),
    Metric("fl_round_started_timestamp_seconds", "gauge", "seconds", "When the current round began, Unix time; 0 while none goes on."),
    Metric("fl_round_duration_seconds", "histogram", "seconds", "Duration of a whole round."),
    Metric("fl_round_phase_duration_seconds", "histogram", "seconds", "Duration of a round's phase: train, aggregate, evaluate.", ("phase",)),
    Metric("fl_global_loss", "gauge", "loss", "Loss of the global model: central on the test set, federated on the clients' held-out parts.", ("source",)),
    Metric("fl_global_accuracy", "gauge", "ratio", "Accuracy of the global model, 0 to 1, by source as for the loss.", ("source",)),
    Metric("fl_clients_expected", "gauge", "clients", "Clients that the experiment asks for."),
    Metric("fl_clients_connected", "gauge", "clients", "Clients that the server can reach."),
    Metric("fl_client_connected", "gauge", "0 or 1", "1 while the server can reach the client that holds the partition.", ("partition",)),
    Metric("fl_clients_selected", "gauge", "clients", "Clients that were asked in the current phase."),
    Metric("fl_client_failures_total", "counter", "failures", "Answers that failed or did not come: error, diverged, deadline or lost.", ("reason",)),
    Metric("fl_message_bytes_total", "counter", "bytes", "Payload of the messages to (down) and from (up) the clients.", ("direction",)),
)  # fmt: skip
"""What the server knows."""

CLIENT_METRICS = (
    Metric("fl_client_fits_total", "counter", "fits", "Local trainings that a client finished.", ("partition",)),
    Metric("fl_client_epochs_total", "counter", "epochs", "Local epochs that a client finished.", ("partition",)),
    Metric("fl_client_examples_total", "counter", "examples", "Examples that a client trained on, each epoch anew.", ("partition",)),
    Metric("fl_client_fit_duration_seconds", "histogram", "seconds", "Duration of a client's local training.", ("partition",)),
    Metric("fl_client_train_loss", "gauge", "loss", "Mean loss over the last local epoch of a client's training.", ("partition",)),
    Metric("fl_client_loss", "gauge", "loss", "Loss of the global model on a client's held-out part.", ("partition",)),
    Metric("fl_client_accuracy", "gauge", "ratio", "Accuracy of the global model on a client's held-out part, 0 to 1.", ("partition",)),
)  # fmt: skip
"""What a client knows: exported by the run itself in one process, by each client on a network."""

NODE_METRICS = (
    Metric("fl_client_info", "info", "1", "The partition that this container trains on; none before it is told one.", ("partition",)),
    Metric("fl_client_message_bytes_total", "counter", "bytes", "Payload of the messages to (down) and from (up) this client.", ("partition", "direction")),
    Metric("fl_client_crashes_total", "counter", "crashes", "Processes of this client that were killed before they answered.", ("partition",)),
)  # fmt: skip
"""What only a client's container knows."""

CONTAINER_METRICS = (
    Metric("fl_container_cpu_seconds_total", "counter", "seconds", "CPU time of the container."),
    Metric("fl_container_cpu_limit_cores", "gauge", "cores", "Cores that the container may use; those of the machine without a limit."),
    Metric("fl_container_memory_bytes", "gauge", "bytes", "Memory that the container has in use, without file cache that can be dropped."),
    Metric("fl_container_memory_limit_bytes", "gauge", "bytes", "Memory that the container may use; that of the machine without a limit."),
)  # fmt: skip
"""What the superlink's and each client's container take of the machine."""

HEALTH_METRIC = Metric("fl_container_failing", "gauge", "0 or 1", "1 while the container cannot do its work: its program ended by itself and is not up again, or its messages' processes are killed one after the other.")  # fmt: skip
"""What a container's health check reads."""

METRICS = SERVER_METRICS + CLIENT_METRICS
"""The metrics of a run in one process."""

ALL_METRICS = (*METRICS, *NODE_METRICS, *CONTAINER_METRICS, HEALTH_METRIC)
"""Every metric. The exporters, dashboards, alerts and docs/metrics.md are made from this table."""


class PrometheusMetrics:
    """A sink that keeps the table's metrics in a registry of its own.

    Process CPU and memory come from Prometheus's own collector (``process_cpu_seconds_total``,
    ``process_resident_memory_bytes``).

    Parameters
    ----------
    clients : int or None
        Number of clients; series by client are kept up to 100 of them. None for the server of a
        network, whose clients serve their own.
    """

    def __init__(self, clients: int | None) -> None:
        self.registry = CollectorRegistry()
        self._clients = clients
        rows = METRICS if clients is not None else SERVER_METRICS
        self._metrics = {m.name: make_metric(m, self.registry) for m in rows}
        if clients is not None:  # on a network the container's whole use counts
            ProcessCollector(registry=self.registry)
        for reason in FAILURE_REASONS:
            self._counter("fl_client_failures_total", reason=reason)
        for direction in ("down", "up"):
            self._counter("fl_message_bytes_total", direction=direction)
        for phase in _PHASES:  # a rate needs the zero before the first round
            self._histogram("fl_round_phase_duration_seconds", phase=phase)

    def __call__(self, event: Event) -> None:
        """Count what the event tells."""
        if isinstance(event, RunStarted):
            self._run(event)
        elif isinstance(event, ClientsConnected):
            self._connected(event)
        elif isinstance(event, PhaseStarted):
            self._phase(event)
        elif isinstance(event, ClientReplied):
            self._client(event)
        elif isinstance(event, Judged):
            self._scores("fl_global", event.central, source="central")
        elif isinstance(event, RoundFinished):
            self._round(event)
        elif isinstance(event, RunFinished):
            self._state(event.state)
            self._gauge("fl_run_round").set(event.rounds)
            self._gauge("fl_round_started_timestamp_seconds").set(0)

    def _run(self, event: RunStarted) -> None:
        spec = event.experiment
        info: Any = self._metrics["fl_run_info"]
        info.info(
            {
                "name": spec.name,
                "strategy": spec.strategy.name,
                "dataset": spec.data.dataset,
                "model": spec.model.class_,
                "seed": str(spec.seed),
            }
        )
        for name in _OF_ONE_RUN:
            self._metrics[name].clear()  # the last run's scores are not this one's
        self._gauge("fl_run_rounds").set(spec.strategy.rounds)
        self._gauge("fl_run_round").set(0)
        self._state("running")

    def _connected(self, event: ClientsConnected) -> None:
        self._gauge("fl_clients_expected").set(event.expected)
        self._gauge("fl_clients_connected").set(len(event.partitions))
        if event.expected <= _LABELLED_CLIENTS:
            there = set(event.partitions)
            for partition in range(event.expected):
                connected = float(partition in there)
                self._gauge("fl_client_connected", partition=str(partition)).set(connected)

    def _phase(self, event: PhaseStarted) -> None:
        self._gauge("fl_clients_selected").set(len(event.cohort))
        if event.phase == "train":
            self._gauge("fl_round_started_timestamp_seconds").set_to_current_time()

    def _state(self, current: str) -> None:
        for state in _STATES:
            self._gauge("fl_run_state", state=state).set(float(state == current))

    def _client(self, event: ClientReplied) -> None:
        if event.reason is not None:
            self._counter("fl_client_failures_total", reason=event.reason).inc()
        elif self._clients is not None and self._clients <= _LABELLED_CLIENTS:
            partition = str(event.partition)
            if event.phase == "train":
                self._fit(event.metrics, partition)
            else:
                self._scores("fl_client", event.metrics, partition=partition)

    def _fit(self, metrics: Scores, partition: str) -> None:
        epochs, examples = metrics["epochs"], metrics["num-examples"]
        self._counter("fl_client_fits_total", partition=partition).inc()
        self._counter("fl_client_epochs_total", partition=partition).inc(epochs)
        self._counter("fl_client_examples_total", partition=partition).inc(epochs * examples)
        self._histogram("fl_client_fit_duration_seconds", partition=partition).observe(
            metrics["seconds"]
        )
        if "loss" in metrics:
            self._gauge("fl_client_train_loss", partition=partition).set(metrics["loss"])

    def _round(self, event: RoundFinished) -> None:
        self._counter("fl_rounds_total").inc()
        self._gauge("fl_run_round").set(event.round)
        self._histogram("fl_round_duration_seconds").observe(event.seconds["total"])
        for phase in _PHASES:
            self._histogram("fl_round_phase_duration_seconds", phase=phase).observe(
                event.seconds[phase]
            )
        for source in ("central", "federated"):
            self._scores("fl_global", getattr(event, source) or {}, source=source)
        for direction, size in event.bytes.items():
            self._counter("fl_message_bytes_total", direction=direction).inc(size)

    def _scores(self, prefix: str, scores: Mapping[str, float], **labels: str) -> None:
        for name in ("loss", "accuracy"):
            if name in scores:
                self._gauge(f"{prefix}_{name}", **labels).set(scores[name])

    def _counter(self, name: str, **labels: str) -> Counter:
        return self._child(name, labels)  # type: ignore[no-any-return]

    def _gauge(self, name: str, **labels: str) -> Gauge:
        return self._child(name, labels)  # type: ignore[no-any-return]

    def _histogram(self, name: str, **labels: str) -> Histogram:
        return self._child(name, labels)  # type: ignore[no-any-return]

    def _child(self, name: str, labels: Mapping[str, str]) -> Any:
        metric = self._metrics[name]
        return metric.labels(**labels) if labels else metric


def make_metric(metric: Metric, registry: CollectorRegistry) -> MetricWrapperBase:
    """A row of the table as a metric of prometheus_client, in a registry."""
    if metric.kind == "info":
        return Info(metric.name.removesuffix("_info"), metric.help, registry=registry)
    if metric.kind == "histogram":
        return Histogram(
            metric.name, metric.help, metric.labels, registry=registry, buckets=_SECONDS
        )
    kind = Counter if metric.kind == "counter" else Gauge
    return kind(metric.name, metric.help, metric.labels, registry=registry)
