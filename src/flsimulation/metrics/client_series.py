"""The series of single clients, filled answer by answer: in one process and by a network's client."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from flsimulation.metrics.table import Series

_OF_ONE_RUN = (
    "fl_client_fit_mean_seconds",
    "fl_client_train_loss",
    "fl_client_loss",
    "fl_client_accuracy",
)
_RECENT_FITS = 5  # so that a client that becomes slow in a long run is seen soon


class ClientSeries:
    """Keeps the series of `CLIENT_METRICS` by partition.

    Parameters
    ----------
    series : Series
        Holds those metrics.
    """

    def __init__(self, series: Series) -> None:
        self._series = series
        self._fits: dict[str, deque[float]] = {}  # partition -> seconds of its last fits

    def begin_run(self) -> None:
        """Forget the values of the run before; counters keep theirs."""
        self._series.clear(*_OF_ONE_RUN)
        self._fits.clear()

    def count_fit(self, metrics: Mapping[str, float], partition: str) -> None:
        """Count one local training that succeeded."""
        epochs, examples = metrics["epochs"], metrics["num-examples"]
        label = {"partition": partition}
        self._series.counter("fl_client_fits_total", **label).inc()
        self._series.counter("fl_client_epochs_total", **label).inc(epochs)
        self._series.counter("fl_client_examples_total", **label).inc(epochs * examples)
        seconds = metrics["seconds"]
        self._series.histogram("fl_client_fit_duration_seconds", **label).observe(seconds)

    def show_fit(self, metrics: Mapping[str, float], partition: str) -> None:
        """Set what the run's last trainings came to."""
        fits = self._fits.setdefault(partition, deque(maxlen=_RECENT_FITS))
        fits.append(metrics["seconds"])
        mean = sum(fits) / len(fits)
        self._series.gauge("fl_client_fit_mean_seconds", partition=partition).set(mean)
        if "loss" in metrics:
            self._series.gauge("fl_client_train_loss", partition=partition).set(metrics["loss"])

    def show_scores(self, metrics: Mapping[str, float], partition: str) -> None:
        """Set what the global model scores on the client's held-out part."""
        for name in ("loss", "accuracy"):
            if name in metrics:
                self._series.gauge(f"fl_client_{name}", partition=partition).set(metrics[name])
