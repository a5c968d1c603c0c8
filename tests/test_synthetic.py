"""The data set synthetic(alpha, beta): the generator of the papers, and what the loader makes of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from flsimulation.data import load_dataset, partition_examples
from flsimulation.data.dataset import Dataset
from flsimulation.data.federated import FederatedData
from flsimulation.data.synthetic import Device, Settings, draw_device
from flsimulation.errors import DataError
from flsimulation.experiment import Experiment
from flsimulation.experiment.spec import Data


def spec(clients: int = 4, partition: str = "natural", **keys: Any) -> Data:
    return Data(dataset="synthetic", clients=clients, partition=partition, **keys)


def load(seed: int = 0, clients: int = 4, **keys: Any) -> Dataset:
    return load_dataset(spec(clients, **keys), seed)


def devices(count: int, seed: int = 0, **settings: Any) -> Iterator[Device]:
    for number in range(count):
        device = draw_device(Settings(**settings), seed, number)
        assert device is not None
        yield device


# --- the generator -------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"iid": True}, {"alpha": 0.0, "beta": 3.0}])
def test_a_label_is_the_likeliest_class_of_the_devices_own_model(settings: dict[str, Any]) -> None:
    seen = set()
    for device in devices(3, size_sigma=0.0, **settings):
        for x, y in zip(device.x, device.y):
            logits = [
                sum(float(x[j]) * float(device.weights[j, c]) for j in range(60)) + device.bias[c]
                for c in range(10)
            ]
            likely = [math.exp(z - max(logits)) for z in logits]  # softmax but for its sum
            assert likely.index(max(likely)) == y
            seen.add(int(y))
    assert len(seen) > 3


def test_sizes_are_lognormal_beyond_the_least() -> None:
    assert [len(d.y) for d in devices(3, size_sigma=0.0)] == [104] * 3  # int(e^4) + 50
    assert [len(d.y) for d in devices(2, size_mean=1.0, size_sigma=0.0, size_least=3)] == [5, 5]
    # int() takes up to one off, which counts little where they are large
    beyond = [len(d.y) - 7 for d in devices(150, size_mean=5.0, size_sigma=0.5, size_least=7)]
    assert np.mean(np.log(beyond)) == pytest.approx(5.0, abs=4 * 0.5 / math.sqrt(150))
    assert np.std(np.log(beyond)) == pytest.approx(0.5, rel=0.25)
    sizes = [len(d.y) for d in devices(200)]
    assert min(sizes) >= 50
    assert np.median(sizes) == pytest.approx(50 + math.exp(4), abs=25)


def test_inputs_vary_about_their_devices_mean_as_published() -> None:
    (device,) = devices(1, size_mean=10.0, size_sigma=0.0)
    j = np.arange(1, 61)
    assert np.var(device.x, axis=0) == pytest.approx(j**-1.2, rel=0.05)
    correlation = np.corrcoef(device.x.T) - np.eye(60)
    assert np.abs(correlation).max() < 0.05  # the covariance is diagonal


def few(count: int, **settings: Any) -> list[Device]:
    """Devices of one example."""
    return list(devices(count, size_mean=-9.0, size_sigma=0.0, size_least=1, **settings))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0])
def test_alpha_is_how_far_the_models_lie_apart(alpha: float) -> None:
    drawn = few(400, alpha=alpha)
    u = [np.concatenate([d.weights.ravel(), d.bias]).mean() for d in drawn]
    # of 610 elements ~ N(u, 1), one u for weights and bias
    assert np.std(u) == pytest.approx(math.sqrt(alpha**2 + 1 / 610), rel=0.15)
    assert np.mean(u) == pytest.approx(0, abs=4 * np.std(u) / 20)
    within = [(d.weights - mean).std() for d, mean in zip(drawn, u)]
    assert np.mean(within) == pytest.approx(1, abs=0.01)
    if alpha == 2.0:
        bias = [d.bias.mean() for d in drawn]
        assert np.corrcoef(u, bias)[0, 1] > 0.95


@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0])
def test_beta_is_how_far_the_inputs_lie_apart(beta: float) -> None:
    x = np.array([d.x[0, 20:] for d in few(400, beta=beta)])  # v to a tenth or so
    variance = 1 + np.mean(np.arange(21, 61) ** -1.2)
    assert np.std(x.mean(axis=1)) == pytest.approx(math.sqrt(beta**2 + variance / 40), rel=0.15)
    assert np.mean(x.std(axis=1, ddof=1)) == pytest.approx(math.sqrt(variance), rel=0.03)


def test_alpha_moves_all_logits_alike_and_so_no_label() -> None:
    for one, two in zip(devices(5, alpha=0.0), devices(5, alpha=1.0)):
        assert np.array_equal(one.x, two.x)
        assert np.array_equal(one.y, two.y)
        assert not np.allclose(one.weights, two.weights)


def largest_share(**settings: Any) -> float:
    """Of a device's commonest label, on average."""
    found = devices(150, size_sigma=0.0, **settings)
    return float(np.mean([np.bincount(device.y).max() / len(device.y) for device in found]))


def test_devices_know_fewer_labels_the_farther_their_inputs_lie_apart() -> None:
    iid, near, apart = (
        largest_share(iid=True),
        largest_share(alpha=0.0, beta=0.0),
        largest_share(beta=3.0),
    )
    assert iid < 0.4
    assert near > 0.75
    assert apart > near + 0.03


def test_iid_devices_share_the_model_and_the_mean_of_the_inputs() -> None:
    one, two = devices(2, iid=True, size_mean=9.0, size_sigma=0.0)
    assert np.array_equal(one.weights, two.weights)
    assert np.array_equal(one.bias, two.bias)
    assert not np.array_equal(one.x, two.x)
    (other,) = devices(1, seed=1, iid=True)
    assert not np.array_equal(one.weights, other.weights)
    for device in (one, two):
        assert np.abs(device.x.mean(axis=0)).max() < 0.06


def test_a_device_is_the_same_among_few_and_many_and_another_for_another_seed() -> None:
    few, many = load(clients=3).x_train, load(clients=5).x_train
    assert torch.equal(few, many[: len(few)])
    a, b = (next(devices(1, seed)) for seed in (0, 1))
    assert not np.array_equal(a.weights, b.weights)
    one, two = devices(2)
    assert not np.array_equal(one.weights, two.weights)


# --- the data set --------------------------------------------------------------------------------


def test_each_device_keeps_a_share_of_its_examples_as_its_part_of_the_test_set() -> None:
    data = load(test_fraction=0.1)
    drawn = list(devices(4))
    kept = [int(0.9 * len(device.y)) for device in drawn]  # as the papers' programs round
    x_train = np.concatenate([d.x[:n] for d, n in zip(drawn, kept)])
    x_test = np.concatenate([d.x[n:] for d, n in zip(drawn, kept)])
    assert np.array_equal(data.x_train.numpy(), x_train.astype(np.float32))
    assert np.array_equal(data.x_test.numpy(), x_test.astype(np.float32))
    y_train = np.concatenate([d.y[:n] for d, n in zip(drawn, kept)])
    assert data.y_train.tolist() == y_train.tolist()
    assert len(data.y_test) == sum(len(d.y) for d in drawn) - sum(kept)
    assert data.owners is not None
    assert data.owners.tolist() == np.repeat(np.arange(4), kept).tolist()
    assert (data.x_train.dtype, data.y_train.dtype) == (torch.float32, torch.int64)
    assert data.classes == tuple("0123456789")


def test_devices_are_the_clients() -> None:
    asked = spec(12, test_fraction=0.1)
    data = load_dataset(asked, 3)
    parts = partition_examples(data, asked, 3)
    assert data.owners is not None
    assert [set(data.owners[part]) for part in parts] == [{number} for number in range(12)]
    assert sum(map(len, parts)) == len(data.y_train)


def test_the_held_out_part_is_a_devices_own() -> None:
    # q-FFL divides a device's examples 80 : 10 : 10
    asked = spec(2, test_fraction=0.1, validation_fraction=1 / 9, args={"size_sigma": 0.0})
    federated = FederatedData.load(Experiment(data=asked))
    assert [len(federated.train_indices(k)) for k in (0, 1)] == [83, 83]  # of 104
    assert [len(federated.validation_indices(k)) for k in (0, 1)] == [10, 10]
    assert len(federated.dataset.y_test) == 22


def test_the_seed_decides_and_may_be_the_datas_own() -> None:
    assert load(seed=5).digest == load(seed=5).digest
    assert load(seed=5).digest != load(seed=6).digest
    own = [load(seed=seed, args={"seed": 5}).digest for seed in (0, 1)]
    assert own == [load(seed=5).digest] * 2
    assert load(seed=5, args={"seed": 0}).digest == load(seed=0).digest


def test_args_reach_the_generator() -> None:
    assert len(load(args={"size_sigma": 0, "size_least": 20}, test_fraction=0.5).y_train) == 4 * 37
    assert load(args={"beta": 2}).digest != load().digest
    assert load(args={"iid": True}).digest != load().digest


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"partition": "iid"},
            "data.partition must be 'natural' for 'synthetic', whose devices are the clients, "
            "got 'iid'; set data.partition = 'natural'",
        ),
        (
            {"args": {"alpha": -1.0}},
            "data.args.alpha of 'synthetic' must be greater than or equal to 0, got -1.0",
        ),
        (
            {"args": {"beta": "one"}},
            "data.args.beta of 'synthetic' must be a valid number, got 'one'",
        ),
        ({"args": {"iid": 1}}, "data.args.iid of 'synthetic' must be a valid boolean, got 1"),
        (
            {"args": {"size_least": 0}},
            "data.args.size_least of 'synthetic' must be greater than or equal to 1, got 0",
        ),
        (
            {"args": {"seed": -1}},
            "data.args.seed of 'synthetic' must be greater than or equal to 0",
        ),
        (
            {"args": {"aplha": 1.0}},
            "data.args.aplha has no meaning for 'synthetic', got 1.0; did you mean 'alpha'?",
        ),
        (
            {"args": {"devices": 30}},
            "data.args.devices has no meaning for 'synthetic', got 30; known: alpha, beta, iid, ",
        ),
        (
            {"args": {"size_mean": 1000.0}},
            "data.dataset 'synthetic': device 0 would have more than 10,000,000 examples; lower "
            "data.args.size_mean 1000.0 or size_sigma 2.0",
        ),
        (
            {"test_fraction": 1.0, "args": {"size_sigma": 0.0}},
            "data.test-fraction 1.0 leaves no training example of the 104 of device 0; lower it",
        ),
    ],
)
def test_mistakes_are_one_line(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError) as caught:
        load(**keys)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_misspelt_names_are_told() -> None:
    with pytest.raises(DataError, match="did you mean 'synthetic'"):
        load_dataset(Data(dataset="syntetic"), 0)
    with pytest.raises(DataError, match="data.args .* has no meaning for 'mnist'; remove it"):
        load_dataset(Data(dataset="mnist", args={"alpha": 1.0}), 0)
