"""fluke's own loop: ``FedAVG`` with its ``DataSplitter``, ``FastDataLoader`` and evaluator.

One process, as fluke has no other on a CPU, and one thread, beside which a second gains little on a
model of this size. ``persistency=False`` gives a client a new optimizer each round, as the other peers
have, and spares the model of every client in memory. The evaluation computes the accuracy alone, not
also fluke's precision, recall and F1.
"""

from __future__ import annotations

from typing import Any

import torch
from fluke import DDict, FlukeENV
from fluke.algorithms.fedavg import FedAVG
from fluke.data import DataContainer, DataSplitter
from fluke.evaluation import ClassificationEval
from fluke.utils import FederationObserver
from torchmetrics import Accuracy

from peer import Rounds, Steps, accuracy, arguments, load, new_model

workload, write = arguments()
torch.set_num_threads(1)


class Clock(FederationObserver):
    def start_round(self, *_: Any, **__: Any) -> None:
        rounds.begin()

    def end_round(self, *_: Any, **__: Any) -> None:
        rounds.end()


data, rounds, steps = load(workload), Rounds(), Steps()
environment = FlukeENV()
environment.set_seed(workload.seed)
environment.set_evaluator(
    ClassificationEval(
        eval_every=workload.evaluate_every,
        n_classes=data.classes,
        accuracy=Accuracy(task="multiclass", num_classes=data.classes),
    )
)
container = DataContainer(data.x_train, data.y_train, data.x_test, data.y_test, data.classes)
federation = FedAVG(
    workload.clients,
    DataSplitter(container, distribution="iid"),
    DDict(
        model=new_model(workload),
        client={
            "batch_size": workload.batch,
            "local_epochs": 1,
            "loss": "CrossEntropyLoss",
            "optimizer": {"name": workload.optimizer_class, "lr": workload.learning_rate},
            "scheduler": {"name": "StepLR", "step_size": 1, "gamma": 1},
            "persistency": False,
        },
        server={"weighted": True},
    ),
)
federation.set_callbacks([Clock()])
federation.run(workload.rounds, workload.cohort / workload.clients)
write(rounds, steps.number, accuracy(federation.server.model, data), "fluke-fl")
