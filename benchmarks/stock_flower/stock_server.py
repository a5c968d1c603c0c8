"""Flower's own round loop, that says when each round begins and how long the clients trained."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from flsimulation.client.workspace import Workspace
from flsimulation.experiment import unflatten

app = ServerApp()


def tell(**content: Any) -> None:
    print("stock-event " + json.dumps(content), flush=True)


class Timed(FedAvg):
    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        tell(began=time.time())
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        answers = list(replies)
        tell(fits=[answer.content["metrics"]["seconds"] for answer in answers])
        return super().aggregate_train(server_round, answers)


@app.main()
def main(grid: Grid, context: Context) -> None:
    experiment = unflatten(context.run_config)
    arrays = ArrayRecord.from_torch_state_dict(Workspace.load(experiment).initial_state())
    clients = experiment.data.clients
    strategy = Timed(
        min_train_nodes=clients, min_evaluate_nodes=clients, min_available_nodes=clients
    )
    strategy.start(grid, arrays, num_rounds=experiment.strategy.rounds)
    tell(began=time.time())
