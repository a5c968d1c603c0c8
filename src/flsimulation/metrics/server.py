"""The sink that fills the table of metrics from a run's events."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import get_args

from prometheus_client import CollectorRegistry
from prometheus_client.process_collector import ProcessCollector

from flsimulation.errors import FAILURE_REASONS
from flsimulation.events import (
    SOURCES,
    ClientMoved,
    ClientReplied,
    ClientsConnected,
    Event,
    Judged,
    Move,
    Phase,
    PhaseStarted,
    RoundFinished,
    RunFinished,
    RunStarted,
)
from flsimulation.experiment.spec import Privacy
from flsimulation.metrics.client_series import ClientSeries
from flsimulation.metrics.table import (
    LABELLED_CLIENTS,
    METRICS,
    PHASES,
    SERVER_METRICS,
    STATES,
    Series,
)

_OF_ONE_RUN = (
    "fl_global_loss",
    "fl_global_accuracy",
    "fl_global_loss_lowest",
    "fl_global_accuracy_highest",
    "fl_last_round_seconds",
    "fl_last_round_bytes",
    "fl_client_connected",
    "fl_client_awaited",
    "fl_privacy_epsilon",
    "fl_privacy_budget_epsilon",
    "fl_privacy_clip_norm",
)


class PrometheusMetrics:
    """A sink that keeps the table's metrics in a registry of its own.

    Process CPU and memory come from Prometheus's own collector (``process_cpu_seconds_total``,
    ``process_resident_memory_bytes``).

    Parameters
    ----------
    clients : int or None
        Number of clients; series by client are kept up to 100 of them. None for the server of a
        network, whose clients serve their own.
    clock : callable
        Gives the Unix time in seconds.
    """

    def __init__(self, clients: int | None, clock: Callable[[], float] = time.time) -> None:
        self.registry = CollectorRegistry()
        self._clock = clock
        rows = METRICS if clients is not None else SERVER_METRICS
        self._series = Series(rows, self.registry)
        self._clients = None if clients is None else ClientSeries(self._series)
        self._labels_clients = clients is not None and clients <= LABELLED_CLIENTS
        self._expected = clients or 0
        self._awaited: set[tuple[str, int]] = set()  # phase, partition
        self._round_seconds: list[float] = []  # of this run
        self._current = 0  # the round that began last
        self._mode = "none"  # of privacy
        self._best: dict[tuple[str, str], float] = {}  # metric, source
        if clients is not None:  # on a network the container's whole use counts
            ProcessCollector(registry=self.registry)
        for reason in FAILURE_REASONS:
            self._series.counter("fl_client_failures_total", reason=reason)
            self._series.gauge("fl_run_failures", reason=reason)
        for move in get_args(Move):
            self._series.counter("fl_client_moves_total", move=move)
        for direction in ("down", "up"):
            self._series.counter("fl_message_bytes_total", direction=direction)
        for phase in PHASES:  # a rate needs the zero before the first round
            self._series.histogram("fl_round_phase_duration_seconds", phase=phase)

    def __call__(self, event: Event) -> None:
        """Update the metrics with an event."""
        if isinstance(event, RunStarted):
            self._begin(event)
        elif isinstance(event, ClientsConnected):
            self._connected(event)
        elif isinstance(event, ClientMoved):
            self._series.counter("fl_client_moves_total", move=event.move).inc()
        elif isinstance(event, PhaseStarted):
            self._phase(event)
        elif isinstance(event, ClientReplied):
            self._replied(event)
        elif isinstance(event, Judged):
            self._judged(event.central, "central")
        elif isinstance(event, RoundFinished):
            self._round(event)
        elif isinstance(event, RunFinished):
            self._end(event)

    def _begin(self, event: RunStarted) -> None:
        """Announce a run; the values of the one before are not this one's."""
        spec = event.experiment
        self._series.inform(
            "fl_run_info",
            name=spec.name,
            strategy=spec.strategy.name,
            dataset=spec.data.dataset,
            model=spec.model.class_,
            seed=str(spec.seed),
            privacy=_privacy(spec.privacy),
        )
        self._series.clear(*_OF_ONE_RUN)
        if self._clients is not None:
            self._clients.begin_run()
        self._round_seconds.clear()
        self._best.clear()
        self._current = 0
        self._mode = spec.privacy.mode
        if spec.privacy.budget_epsilon:
            budget = self._series.gauge("fl_privacy_budget_epsilon", mode=self._mode)
            budget.set(spec.privacy.budget_epsilon)
        self._expected = spec.data.clients
        for reason in FAILURE_REASONS:
            self._series.gauge("fl_run_failures", reason=reason).set(0)
        for name in ("round", "current_round", "round_mean_seconds", "answers"):
            self._series.gauge(f"fl_run_{name}").set(0)
        self._series.gauge("fl_run_round").set(event.done)
        self._series.gauge("fl_run_rounds").set(spec.strategy.rounds)
        self._series.gauge("fl_run_started_timestamp_seconds").set(self._clock())
        self._rest()
        self._state("running")

    def _end(self, event: RunFinished) -> None:
        self._series.gauge("fl_run_round").set(event.rounds)
        self._state(event.state)
        self._rest()

    def _rest(self) -> None:
        """Nothing is in progress."""
        self._wait_for(set())
        self._series.gauge("fl_clients_selected").set(0)
        for what in ("round", "phase"):
            self._series.gauge(f"fl_{what}_started_timestamp_seconds").set(0)

    def _connected(self, event: ClientsConnected) -> None:
        self._expected = event.expected
        self._series.gauge("fl_clients_expected").set(event.expected)
        self._series.gauge("fl_clients_connected").set(len(event.partitions))
        if event.expected <= LABELLED_CLIENTS:
            there = set(event.partitions)
            for partition in range(event.expected):
                gauge = self._series.gauge("fl_client_connected", partition=str(partition))
                gauge.set(float(partition in there))

    def _phase(self, event: PhaseStarted) -> None:
        now = self._clock()
        self._series.gauge("fl_clients_selected").set(len(event.cohort))
        self._series.gauge("fl_phase_started_timestamp_seconds").set(now)
        # An evaluation and the next round's training may go out together.
        self._wait_for(self._awaited | {(event.phase, partition) for partition in event.cohort})
        if event.phase == "train":
            self._series.gauge("fl_round_started_timestamp_seconds").set(now)
            self._series.gauge("fl_run_current_round").set(event.round)
            self._current = event.round

    def _wait_for(self, awaited: set[tuple[str, int]]) -> None:
        self._awaited = awaited
        partitions = {partition for _, partition in awaited}
        self._series.gauge("fl_clients_awaited").set(len(partitions))
        if self._expected <= LABELLED_CLIENTS:
            for partition in range(self._expected):
                gauge = self._series.gauge("fl_client_awaited", partition=str(partition))
                gauge.set(float(partition in partitions))

    def _state(self, current: str) -> None:
        for state in STATES:
            self._series.gauge("fl_run_state", state=state).set(float(state == current))

    def _replied(self, event: ClientReplied) -> None:
        self._answered(event.phase, event.partition)
        self._series.gauge("fl_run_answers").inc()
        if event.reason is not None:
            self._series.counter("fl_client_failures_total", reason=event.reason).inc()
            self._series.gauge("fl_run_failures", reason=event.reason).inc()
        elif self._clients is not None and self._labels_clients:
            partition = str(event.partition)
            if event.phase == "train":
                self._clients.count_fit(event.metrics, partition)
                self._clients.show_fit(event.metrics, partition)
            else:
                self._clients.show_scores(event.metrics, partition)

    def _answered(self, phase: str, partition: int) -> None:
        """One answer fewer to wait for; without a look at all the others."""
        if (phase, partition) not in self._awaited:
            return
        self._awaited.remove((phase, partition))
        if not any((other, partition) in self._awaited for other in get_args(Phase)):
            self._series.gauge("fl_clients_awaited").dec()
            if self._expected <= LABELLED_CLIENTS:
                self._series.gauge("fl_client_awaited", partition=str(partition)).set(0)

    def _round(self, event: RoundFinished) -> None:
        seconds = event.seconds["total"]
        self._series.counter("fl_rounds_total").inc()
        self._series.gauge("fl_run_round").set(event.round)
        self._series.histogram("fl_round_duration_seconds").observe(seconds)
        self._round_seconds.append(seconds)
        mean = sum(self._round_seconds) / len(self._round_seconds)
        self._series.gauge("fl_run_round_mean_seconds").set(mean)
        for phase in PHASES:
            self._series.histogram("fl_round_phase_duration_seconds", phase=phase).observe(
                event.seconds[phase]
            )
            self._series.gauge("fl_last_round_seconds", phase=phase).set(event.seconds[phase])
        for source in SOURCES:
            self._judged(getattr(event, source) or {}, source)
        for direction, size in event.bytes.items():
            self._series.counter("fl_message_bytes_total", direction=direction).inc(size)
            self._series.gauge("fl_last_round_bytes", direction=direction).set(size)
        if event.privacy is not None:
            self._spent(event.privacy)
        if event.round >= self._current:  # the next one may have begun
            self._series.gauge("fl_round_started_timestamp_seconds").set(0)

    def _spent(self, privacy: Mapping[str, float]) -> None:
        if "epsilon" in privacy:
            labels = {"mode": self._mode, "delta": f"{privacy['delta']:g}"}
            self._series.gauge("fl_privacy_epsilon", **labels).set(privacy["epsilon"])
        if "clip" in privacy:
            self._series.gauge("fl_privacy_clip_norm", mode=self._mode).set(privacy["clip"])

    def _judged(self, scores: Mapping[str, float], source: str) -> None:
        self._show(scores, source, "loss", "fl_global_loss_lowest", min)
        self._show(scores, source, "accuracy", "fl_global_accuracy_highest", max)

    def _show(
        self,
        scores: Mapping[str, float],
        source: str,
        name: str,
        best: str,
        better: Callable[[float, float], float],
    ) -> None:
        """Set a score of the global model, and the best of this run."""
        if name not in scores:
            return
        score = scores[name]
        self._series.gauge(f"fl_global_{name}", source=source).set(score)
        if math.isfinite(score):
            self._best[best, source] = better(score, self._best.get((best, source), score))
            self._series.gauge(best, source=source).set(self._best[best, source])


def _privacy(spec: Privacy) -> str:
    """What hides the clients, in words."""
    used: list[str] = [] if spec.mode == "none" else [spec.mode]
    if spec.secure_aggregation:
        used.append("secure aggregation")
    return " + ".join(used) or "none"
