"""Runs of a network that are stopped, twenty in a row: what is left of them, and what comes next."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.conftest import PATIENCE, wait_for
from tests.test_network import (
    SLOW,
    Network,
    at_the_gate,
    driven,
    last_run,
    processes_of,
    round_goes_on,
    started,
)

from flsimulation.rundir import RunRecord

pytestmark = pytest.mark.slow

CLIENTS = ("a", "b", "c")
STAYING = 5  # of a client: its own process, two that fork, Flower's SuperNode and SuperExec


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    folder = tmp_path_factory.mktemp("stops")
    (folder / "runs").mkdir()
    (folder / "slow.py").write_text(SLOW)
    with started(folder, *CLIENTS) as network:
        yield network
        network.end()


def connected(network: Network) -> float:
    return network.superlink.samples().get("fl_clients_connected", 0)


def is_running(network: Network) -> bool:
    return network.superlink.samples().get("fl_run_state,state=running", 0) == 1


def begins(network: Network, gate: Path) -> None:
    wait_for("the begin of the run", lambda: is_running(network))


def some_answer(network: Network, gate: Path) -> None:
    wait_for("a client", lambda: is_running(network) and connected(network) >= 1)


def some_train(network: Network, gate: Path, *names: str) -> None:
    wait_for("all clients", lambda: is_running(network) and connected(network) == len(CLIENTS))
    wait_for("a round of this run", lambda: round_goes_on(network))
    for mark in gate.parent.glob(f"{gate.name}.*"):
        mark.unlink()  # of processes that worked for the run before
    for name in names:
        at_the_gate(gate, name)


MOMENTS: tuple[Callable[[Network, Path], None], ...] = (
    begins,
    some_answer,
    lambda network, gate: some_train(network, gate, *CLIENTS),
    lambda network, gate: some_train(network, gate, "b"),
)


def test_twenty_stops_in_a_row_leave_no_client_stuck_and_no_process(network: Network) -> None:
    for number in range(20):
        with driven(network, "--set=data.clients=3") as (run, gate):
            MOMENTS[number % len(MOMENTS)](network, gate)
            run.send_signal(signal.SIGINT)
            _, err = run.communicate(timeout=PATIENCE)
            assert run.returncode == 130, (number, err)
        wait_for("the end of the run", lambda: not is_running(network))
    done = network.run("--set=data.clients=3", "--set=strategy.rounds=1", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "completed"
    (line,) = RunRecord(last_run(network)).rounds
    assert (line["cohort"], line["failures"]) == ([0, 1, 2], {})
    for name, client in network.clients.items():
        wait_for(
            f"the end of what {name} worked on",
            lambda client=client: len(processes_of(client.process.pid)) == STAYING,
        )


def test_a_client_drops_the_training_of_a_stopped_run_at_once(network: Network) -> None:
    with driven(network, "--set=data.clients=3") as (run, gate):
        training = [at_the_gate(gate, name) for name in CLIENTS]
        run.send_signal(signal.SIGINT)
        run.communicate(timeout=PATIENCE)
        # the gate is still shut: they would train for ever
        for process in training:
            wait_for("its end", lambda process=process: not Path(f"/proc/{process}").exists())
    for client in network.clients.values():
        assert "flsim: the run is over: the work in progress is dropped" in client.log.read_text()
        assert client.samples()["fl_container_failing"] == 0
