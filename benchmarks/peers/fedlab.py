"""FedLab's cross-process simulation: a server and, for each core, a process with its share of clients.

``SynchronousServerManager`` and ``PassiveClientManager`` with ``SGDSerialClientTrainer``, which
FedLab's documentation has for faster simulations than its standalone pipeline, and which are faster
here too. Each process has one thread. The batches are slices of tensors, not those of FedLab's pickles
and DataLoader; the log is silent. FedLab knows SGD only, so that the optimizer is set up in its place,
anew for each client. Its average is not weighted, which with clients of equal size is the same.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import socket
import sys
from types import ModuleType
from typing import Any

import torch

# FedLab imports torchvision for its own data sets, of which none is used.
for name in ("torchvision", "torchvision.transforms"):
    sys.modules[name] = ModuleType(name)
sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]  # type: ignore[attr-defined]

from fedlab.contrib.algorithm.basic_client import SGDSerialClientTrainer  # noqa: E402
from fedlab.contrib.algorithm.fedavg import FedAvgServerHandler  # noqa: E402
from fedlab.contrib.dataset.basic_dataset import FedDataset  # noqa: E402
from fedlab.core.client.manager import PassiveClientManager  # noqa: E402
from fedlab.core.network import DistNetwork  # noqa: E402
from fedlab.core.server.manager import SynchronousServerManager  # noqa: E402

from peer import Batches, Rounds, Steps, accuracy, arguments, load, new_model  # noqa: E402

PROCESSES = os.cpu_count() or 1

workload, write = arguments()
torch.set_num_threads(1)
logging.disable(logging.INFO)
data, rounds = load(workload), Rounds()


class Parts(FedDataset):
    def get_dataloader(self, id: int, batch_size: int) -> Batches:
        return Batches(*data.client(id), batch_size)


class Trainer(SGDSerialClientTrainer):
    def train(self, model_parameters: Any, train_loader: Any) -> Any:
        self.optimizer = workload.new_optimizer(self._model)
        return super().train(model_parameters, train_loader)


class Handler(FedAvgServerHandler):
    def global_update(self, buffer: Any) -> None:
        super().global_update(buffer)
        if workload.evaluates(self.round + 1):
            accuracy(self.model, data)
        rounds.end()


def network(port: int, rank: int) -> DistNetwork:
    return DistNetwork(("127.0.0.1", port), PROCESSES + 1, rank)


def clients(port: int, rank: int, counts: Any) -> None:
    """A process with its share of the clients; it tells the steps they took."""
    steps = Steps()
    share = len(range(rank - 1, workload.clients, PROCESSES))
    trainer = Trainer(new_model(workload), share)
    trainer.setup_dataset(Parts())
    trainer.setup_optim(1, workload.batch, workload.learning_rate)
    PassiveClientManager(network(port, rank), trainer).run()
    counts.put(steps.number)


with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
fork = multiprocessing.get_context("fork")  # so that the data are in memory once
counts = fork.Queue()
processes = [
    fork.Process(target=clients, args=(port, rank, counts)) for rank in range(1, PROCESSES + 1)
]
for process in processes:
    process.start()
handler = Handler(new_model(workload), workload.rounds, workload.cohort / workload.clients)
rounds.begin()
SynchronousServerManager(network(port, 0), handler, "GLOBAL").run()
steps = sum(counts.get() for _ in processes)
for process in processes:
    process.join()
write(rounds, steps, accuracy(handler.model, data), "fedlab")
