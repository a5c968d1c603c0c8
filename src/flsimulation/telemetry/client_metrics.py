"""The metrics that one client of a network serves, filled from what its processes report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry

from flsimulation.telemetry.container import ContainerCollector
from flsimulation.telemetry.metrics import CLIENT_METRICS, NODE_METRICS, make_metric


class ClientMetrics:
    """Counts the reports of a client; a report is one message with its answer.

    Flower runs a process for each message, so the counts are kept here, in the process that stays.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._metrics: dict[str, Any] = {
            m.name: make_metric(m, self.registry) for m in CLIENT_METRICS + NODE_METRICS
        }
        self.registry.register(ContainerCollector())
        self._partition = "none"
        self._metrics["fl_client_info"].info({"partition": self._partition})

    def count(self, report: Mapping[str, Any]) -> None:
        """Count one report: a message that begins, is answered, or whose process was killed."""
        if "killed" in report:
            self._of("fl_client_crashes_total", self._partition).inc()
            return
        partition = self._partition = str(report["partition"])
        self._metrics["fl_client_info"].info({"partition": partition})
        if "bytes" not in report:  # it begins
            return
        for direction, size in report["bytes"].items():
            self._of("fl_client_message_bytes_total", partition, direction=direction).inc(size)
        for phase, metrics in report["metrics"].items():  # what failed the server counts
            if phase == "train":
                self._fit(metrics, partition)
            else:
                self._score("fl_client_loss", metrics, "loss", partition)
                self._score("fl_client_accuracy", metrics, "accuracy", partition)

    def _fit(self, metrics: Mapping[str, float], partition: str) -> None:
        epochs, examples = metrics["epochs"], metrics["num-examples"]
        self._of("fl_client_fits_total", partition).inc()
        self._of("fl_client_epochs_total", partition).inc(epochs)
        self._of("fl_client_examples_total", partition).inc(epochs * examples)
        self._of("fl_client_fit_duration_seconds", partition).observe(metrics["seconds"])
        self._score("fl_client_train_loss", metrics, "loss", partition)

    def _score(self, name: str, metrics: Mapping[str, float], key: str, partition: str) -> None:
        if key in metrics:
            self._of(name, partition).set(metrics[key])

    def _of(self, name: str, partition: str, **labels: str) -> Any:
        return self._metrics[name].labels(partition=partition, **labels)
