"""The server of both Flower peers: ``FedAvg`` with a central evaluation, in Flower's simulation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flwr.app import ArrayRecord, Context, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from peer import Rounds, Workload, accuracy, load, new_model

ONE_CORE = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}


def summed(replies: list[RecordDict], _: str) -> MetricRecord:
    return MetricRecord({"steps": sum(int(reply["metrics"]["steps"]) for reply in replies)})  # type: ignore[index]


def simulate(
    client_app: ClientApp, workload: Workload, write: Callable[..., None], *packages: str
) -> None:
    """Run the simulation and write its result."""
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, _: Context) -> None:
        data, model, rounds = load(workload), new_model(workload), Rounds()

        def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord | None:
            if number == 0:
                rounds.begin()
                return None
            metrics = None
            if workload.evaluates(number):
                model.load_state_dict(arrays.to_torch_state_dict())
                metrics = MetricRecord({"accuracy": accuracy(model, data)})
            rounds.end()
            return metrics

        strategy = FedAvg(
            fraction_train=workload.cohort / workload.clients,
            fraction_evaluate=0.0,
            min_available_nodes=workload.clients,
            train_metrics_aggr_fn=summed,
        )
        result: Any = strategy.start(
            grid,
            ArrayRecord(model.state_dict()),
            num_rounds=workload.rounds,
            evaluate_fn=evaluate,
        )
        model.load_state_dict(result.arrays.to_torch_state_dict())
        steps = sum(int(metrics["steps"]) for metrics in result.train_metrics_clientapp.values())
        write(rounds, steps, accuracy(model, data), "flwr", "ray", *packages)

    run_simulation(server_app, client_app, num_supernodes=workload.clients, backend_config=ONE_CORE)
