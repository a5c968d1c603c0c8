"""Who trains and evaluates on what, and the model that all start from."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from flsimulation.client.workspace import Workspace
from flsimulation.data.federated import FederatedData
from flsimulation.errors import ModelError
from flsimulation.experiment.spec import Model
from flsimulation.models import CNN, MLP, Logistic, TwoNN, build_model, model_arguments


@pytest.mark.parametrize(("fraction", "held_out"), [(0.0, 0), (0.001, 1), (0.1, 6), (0.99, 59)])
def test_the_held_out_part_and_the_training_part_share_nothing(
    make_experiment: Any, dataset: Any, fraction: float, held_out: int
) -> None:
    data = FederatedData.divide(dataset, make_experiment(data={"validation-fraction": fraction}))
    for partition in range(4):
        train, validation = data.train_indices(partition), data.validation_indices(partition)
        assert (len(validation), len(train)) == (held_out, data.train_size(partition))
        both = np.concatenate([train, validation])
        assert sorted(both) == sorted(data.partitions[partition])
        assert len(set(both)) == 60


def test_the_histogram_counts_each_clients_classes(make_experiment: Any, dataset: Any) -> None:
    data = FederatedData.divide(dataset, make_experiment())
    for client, counts in data.histogram().items():
        labels = dataset.y_train[data.partitions[int(client)]]
        assert counts == [int((labels == c).sum()) for c in range(3)]


def order(space: Workspace, partition: int, round: int) -> list[float]:
    return [float(v) for x, _ in space.train_batches(partition, round) for v in x[:, 0]]


@pytest.mark.seconds
def test_batches_are_shuffled_anew_for_every_round_and_client(make_experiment: Any) -> None:
    space, again = (Workspace.load(make_experiment()) for _ in range(2))
    assert order(space, 0, 1) == order(again, 0, 1)
    assert order(space, 0, 1) != order(space, 0, 2)
    assert sorted(order(space, 0, 1)) == sorted(order(space, 0, 2))
    assert sorted(order(space, 0, 1)) != sorted(order(space, 1, 1))
    other = Workspace.load(make_experiment(seed=9))
    assert sorted(order(space, 0, 1)) != sorted(order(other, 0, 1))


def test_initial_weights_come_from_the_seed_and_leave_torchs_stream_alone(dataset: Any) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first, again, other = (build_model(Model(), dataset, seed) for seed in (1, 1, 2))
    assert torch.rand(1) == expected
    assert torch.equal(first.layer_1.weight, again.layer_1.weight)
    assert not torch.equal(first.layer_1.weight, other.layer_1.weight)


def test_shipped_models_take_their_sizes_from_the_data_unless_told(dataset: Any) -> None:
    assert model_arguments(Model(), dataset) == {"inputs": 6, "classes": 3}
    told = Model(args={"classes": 7, "hidden": [5, 4]})
    assert model_arguments(told, dataset) == {"inputs": 6, "classes": 7, "hidden": [5, 4]}
    with pytest.raises(ModelError, match="'cnn' needs square images"):
        model_arguments(Model(class_="cnn"), dataset)


@pytest.mark.parametrize(
    ("model", "layers", "parameters"),
    [
        # 784 x 128 + 128 + 128 x 256 + 256 + 256 x 10 + 10
        (MLP(), ["layer_1", "layer_2", "layer_3"], 136_074),
        # McMahan et al. (2017), section 3: "199,210 total parameters" and "1,663,370"
        (TwoNN(), ["layer_1", "layer_2", "layer_3"], 199_210),
        (CNN(), ["conv_1", "conv_2", "layer_1", "layer_2"], 1_663_370),
        (Logistic(), ["layer_1"], 7_850),  # 784 x 10 + 10
    ],
)
def test_the_shipped_models_are_those_of_the_papers(
    model: Any, layers: list[str], parameters: int
) -> None:
    assert [name for name, _ in model.named_children() if name != "goal"] == layers
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_a_step_of_logistic_regression_by_hand(dataset: Any) -> None:
    assert model_arguments(Model(class_="logistic"), dataset) == {"inputs": 6, "classes": 3}
    model = Logistic(2, 2, learning_rate=0.5)
    with torch.no_grad():
        model.layer_1.weight.zero_()
        model.layer_1.bias.zero_()
    optimizer = model.configure_optimizers()
    loss = model.training_step((torch.tensor([[1.0, -2.0]]), torch.tensor([1])), 0)
    assert loss.item() == pytest.approx(math.log(2))
    loss.backward()
    optimizer.step()
    # p - onehot = (0.5, -0.5); a step of half of it
    assert model.layer_1.weight.tolist() == [[-0.25, 0.5], [0.25, -0.5]]
    assert model.layer_1.bias.tolist() == [-0.25, 0.25]


OWN = """
import torch, pytorch_lightning as pl
class Base(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = self.make()
    def make(self):
        return torch.nn.Linear(6, 3)
class NoOptimizer(Base):
    def training_step(self, batch, batch_idx): ...
class NoStep(Base):
    def configure_optimizers(self): ...
class Whole(NoOptimizer):
    def configure_optimizers(self): ...
class Lazy(Whole):
    def make(self):
        return torch.nn.LazyLinear(3)
class Frozen(Whole):
    def make(self):
        return torch.nn.Linear(6, 3).requires_grad_(False)
class Half(Whole):
    def make(self):
        return torch.nn.Linear(6, 3, dtype=torch.bfloat16)
"""


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("NoOptimizer", "has no configure_optimizers"),
        ("NoStep", "has no training_step"),
        ("Lazy", "has the lazy parameter layer.weight; give its size"),
        ("Frozen", "has no parameter that can be trained"),
        ("Half", "has layer.weight of type torch.bfloat16, which cannot be sent; use float32"),
        ("Whole", None),
    ],
)
def test_a_model_that_cannot_be_trained_and_sent_is_refused_at_once(
    dataset: Any, own_modules: Any, name: str, part: str | None
) -> None:
    spec = Model(class_=f"{own_modules(OWN)}:{name}")
    if part is None:
        assert len(build_model(spec, dataset, 0).state_dict()) == 2
        return
    with pytest.raises(ModelError, match="model.class") as caught:
        build_model(spec, dataset, 0)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("args", "part"),
    [
        ({"optimizer": "lion"}, "optimizer must be 'sgd' or 'adam'"),
        ({"learning_rate": 0}, "must be > 0, got 0"),
    ],
)
def test_a_model_that_refuses_its_arguments_is_named(
    dataset: Any, args: dict[str, Any], part: str
) -> None:
    with pytest.raises(ModelError, match="model.args") as caught:
        build_model(Model(args=args), dataset, 0)
    assert part in str(caught.value)
