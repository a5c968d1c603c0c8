"""What a signal does to the process of a network's run: while it runs, and after it."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from flsimulation.errors import Interrupted
from flsimulation.node import ends

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def _handlers_of_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_run_once_and_names_its_cause(number: signal.Signals) -> None:
    said = {signal.SIGINT: "it was stopped", signal.SIGTERM: "SIGTERM ended it"}[number]

    def run() -> None:
        with ends.in_order():
            try:
                signal.raise_signal(number)
            finally:
                signal.raise_signal(number)  # while the run writes its end

    with pytest.raises(Interrupted, match=said):
        run()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_after_the_run_does_not_disturb_what_flower_still_reports(
    number: signal.Signals,
) -> None:
    """Flower sends SIGINT if a heartbeat is refused, as every one is after the run's report.

    It came while the log's last lines were uploaded (`run_serverapp.on_exit`), and wrote a
    traceback.
    """
    done = []
    with ends.in_order():
        done.append("run")
    signal.raise_signal(number)
    done.append("report")
    assert done == ["run", "report"]
