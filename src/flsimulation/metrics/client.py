"""The metrics that one client of a network serves, filled from what its processes report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry

from flsimulation.metrics.client_series import ClientSeries
from flsimulation.metrics.container import ContainerCollector
from flsimulation.metrics.table import CLIENT_METRICS, NODE_METRICS, Series

_NO_PARTITION = "none"


class ClientMetrics:
    """Counts the reports of a client; a report is one message with its answer.

    Flower runs a process for each message, so the counts are kept here, in the process that stays.

    Parameters
    ----------
    name : str
        By which the server knows the client.
    """

    def __init__(self, name: str) -> None:
        self.registry = CollectorRegistry()
        self._series = Series(CLIENT_METRICS + NODE_METRICS, self.registry)
        self._clients = ClientSeries(self._series)
        self.registry.register(ContainerCollector())
        self._name = name
        self._run: int | None = None
        self._past: set[int] = set()  # runs before this one
        self._hold(_NO_PARTITION)

    def count(self, report: Mapping[str, Any]) -> None:
        """Count one report.

        Parameters
        ----------
        report : mapping
            ``killed`` of a process that was killed; ``run``, its id, of a run that is here;
            ``partition`` of a message that begins; or of a message that is answered run,
            partition, bytes by direction and metrics by phase.
        """
        if "killed" in report:
            self._series.counter("fl_client_crashes_total").inc()
            return
        current = "run" not in report or self._is_of_current_run(report["run"])
        if "partition" not in report:
            return
        partition = str(report["partition"])
        for direction, size in report.get("bytes", {}).items():
            labels = {"partition": partition, "direction": direction}
            self._series.counter("fl_client_message_bytes_total", **labels).inc(size)
            if current:
                self._series.gauge("fl_client_last_message_bytes", **labels).set(size)
        if current:
            self._hold(partition)
        for phase, metrics in report.get("metrics", {}).items():  # what failed the server counts
            if phase == "train":
                self._clients.count_fit(metrics, partition)
            if current and phase == "train":
                self._clients.show_fit(metrics, partition)
            elif current:
                self._clients.show_scores(metrics, partition)

    def _is_of_current_run(self, run: int) -> bool:
        """Whether a report is of the run that began last; with a new run the values start again from zero."""
        if run in self._past:
            return False  # a process that outlived its run
        if run != self._run:
            if self._run is not None:
                self._past.add(self._run)
            self._run = run
            self._clients.begin_run()
            self._series.clear("fl_client_last_message_bytes")
            self._hold(_NO_PARTITION)
        return True

    def _hold(self, partition: str) -> None:
        self._series.inform("fl_client_info", name=self._name, partition=partition)
