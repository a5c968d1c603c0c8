"""pfl-research's simulation: ``FederatedAveraging`` over a ``FederatedDataset``.

Started by torchrun, one process a core, as pfl's guide to fast simulations says; each takes its
part of the cohort and of the central evaluation. Users are weighted by their examples. Their
evaluation before and after training, which pfl does in every ``evaluation_frequency``-th round, is
left to the first round alone, and no metrics are printed. pfl evaluates after its rounds 0, k, 2k, ...
but for the first: the same number of times but one. A user's batches come in the same order each time.
"""

from __future__ import annotations

from typing import Any

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.callback.central_evaluation import CentralEvaluationCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.internal.ops import pytorch_ops
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from torch.nn import functional

from peer import Rounds, Steps, accuracy, arguments, load, new_model

workload, write = arguments()
torch.set_num_threads(1)


class Module(nn.Module):
    """The model with the two functions that pfl asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = new_model(workload)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        self.train()
        return functional.cross_entropy(self.layers(x), y)

    @torch.no_grad()
    def metrics(self, x: Tensor, y: Tensor) -> dict[str, Weighted]:
        self.eval()
        right = int((self.layers(x).argmax(1) == y).sum())
        return {"accuracy": Weighted(right, y.numel())}


class Clock(TrainingProcessCallback[Any]):
    """Stands last, so that a round ends with its evaluation."""

    def on_train_begin(self, *, model: Any) -> Metrics:
        rounds.begin()
        return Metrics()

    def after_central_iteration(self, *_: Any, **__: Any) -> tuple[bool, Metrics]:
        rounds.end()
        return False, Metrics()


data, module, rounds, steps = load(workload), Module(), Rounds(), Steps()
model = PyTorchModel(module, workload.optimizer_class, torch.optim.SGD(module.parameters(), lr=1.0))
device = pytorch_ops.get_default_device()
users = {n: tuple(part.to(device) for part in data.client(n)) for n in range(workload.clients)}
training = FederatedDataset.from_slices(users, get_user_sampler("minimize_reuse", list(users)))
FederatedAveraging().run(
    algorithm_params=NNAlgorithmParams(
        central_num_iterations=workload.rounds,
        evaluation_frequency=workload.rounds,
        train_cohort_size=workload.cohort,
        val_cohort_size=0,
    ),
    backend=SimulatedBackend(training, training, postprocessors=[WeightByDatapoints()]),
    model=model,
    model_train_params=NNTrainHyperParams(
        local_num_epochs=1,
        local_learning_rate=workload.learning_rate,
        local_batch_size=workload.batch,
    ),
    model_eval_params=NNEvalHyperParams(local_batch_size=1000),
    callbacks=[
        CentralEvaluationCallback(
            Dataset((data.x_test.to(device), data.y_test.to(device))),
            NNEvalHyperParams(local_batch_size=1000),
            frequency=workload.evaluate_every,
        ),
        Clock(),
    ],
    send_metrics_to_platform=False,
)
processes = pytorch_ops.distributed.world_size
total = pytorch_ops.distributed.all_reduce([torch.tensor([float(steps.number)])])[0]
if pytorch_ops.distributed.global_rank == 0:
    # the server's optimizer stepped once a round in each process
    clients_steps = int(total) - processes * workload.rounds
    write(rounds, clients_steps, accuracy(module.layers.cpu(), data), "pfl")
