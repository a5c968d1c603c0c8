from __future__ import annotations

import logging
import subprocess
import sys
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flsimulation import seeds
from flsimulation.data.dataset import Dataset
from flsimulation.data.partitions import partition_examples
from flsimulation.errors import DataError
from flsimulation.experiment.spec import Data

SCHEMES = (
    "iid", "dirichlet", "pathological", "shards", "linear", "square", "exponential", "natural",
)  # fmt: skip


def tiny(
    labels: Any, owners: Any = None, name: str = "tiny", classes: tuple[str, ...] = ()
) -> Dataset:
    y = torch.as_tensor(np.asarray(labels))
    x = torch.zeros(len(y), 1)
    owners = None if owners is None else np.asarray(owners)
    return Dataset(name, x, y, x[:1], y[:1], classes, owners)


def spec(**keys: Any) -> Data:
    return Data(**{"min_examples": 2, **keys})


def refused(dataset: Dataset, **keys: Any) -> str:
    with pytest.raises(DataError) as caught:
        partition_examples(dataset, spec(**keys), 0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def held(parts: list[np.ndarray]) -> list[int]:
    return sorted(np.concatenate(parts).tolist())


# --- every scheme ------------------------------------------------------------------------------

complete = pytest.mark.parametrize("scheme", SCHEMES)


@complete
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    clients=st.integers(1, 5),
    each=st.integers(24, 40),
    spare=st.integers(0, 30),
)
def test_parts_are_disjoint_and_complete(
    scheme: str, seed: int, clients: int, each: int, spare: int
) -> None:
    # 4 classes, 2 of them or 2 whole shards each: only one pathological client leaves some over.
    size = clients * each * 4
    dataset = tiny(np.arange(size + spare) % 4, np.arange(size + spare) % clients)
    asked = spec(clients=clients, partition=scheme, alpha=100.0, examples_per_client=each * 4)
    parts = partition_examples(dataset, asked, seed)
    assert len(parts) == clients
    assert all(part.dtype == np.int64 and len(part) >= 2 for part in parts)
    everything = np.concatenate(parts)
    assert len(np.unique(everything)) == len(everything)
    assert everything.min() >= 0
    assert everything.max() < size + spare
    if scheme != "pathological" or clients > 1:
        assert len(everything) == size
    again = partition_examples(dataset, asked, seed)
    assert [part.tolist() for part in again] == [part.tolist() for part in parts]


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme != "natural"])
def test_the_seed_decides(scheme: str) -> None:
    dataset = tiny(np.arange(400) % 4)
    asked = spec(clients=4, partition=scheme, alpha=10.0)
    one, two = (partition_examples(dataset, asked, seed) for seed in (1, 2))
    assert [part.tolist() for part in one] != [part.tolist() for part in two]


def test_natural_goes_by_owner_whatever_the_seed() -> None:
    dataset = tiny([0, 1, 0, 1, 0, 1], ["bo", "al", "bo", "al", "cy", "cy"])
    for seed in (1, 2):
        parts = partition_examples(dataset, spec(clients=3, partition="natural"), seed)
        assert [sorted(part.tolist()) for part in parts] == [[1, 3], [0, 2], [4, 5]]


# --- what each scheme means --------------------------------------------------------------------


def test_iid_sizes_differ_by_one_at_most() -> None:
    parts = partition_examples(tiny(np.zeros(11, int)), spec(clients=3), 0)
    assert [len(part) for part in parts] == [4, 4, 3]


def test_linear_square_and_exponential_sizes() -> None:
    dataset = tiny(np.arange(140) % 2)

    def sizes(scheme: str, clients: int) -> list[int]:
        asked = spec(clients=clients, partition=scheme)
        return [len(part) for part in partition_examples(dataset, asked, 0)]

    assert sizes("linear", 4) == [14, 28, 42, 56]  # 1 : 2 : 3 : 4
    assert sizes("square", 3) == [10, 40, 90]  # 1 : 4 : 9
    assert sizes("exponential", 3) == [12, 34, 94]  # 1 : e : e^2, the rest to the last


@pytest.mark.parametrize("scheme", ["iid", "linear", "square", "exponential"])
def test_sorted_labels_still_give_iid_clients(scheme: str) -> None:
    dataset = tiny(np.repeat([0, 1], 700))  # in order: all 0, then all 1
    parts = partition_examples(dataset, spec(clients=3, partition=scheme), 5)
    shares = [dataset.y_train[torch.from_numpy(part)].float().mean().item() for part in parts]
    assert all(0.3 < share < 0.7 for share in shares)


def test_shards_hold_as_many_labels_as_shards() -> None:
    dataset = tiny(np.arange(80) % 4)  # 4 classes of 20; 4 clients x 2 shards of 10
    parts = partition_examples(dataset, spec(clients=4, partition="shards"), 3)
    assert [len(part) for part in parts] == [20] * 4
    for part in parts:
        counts = Counter(dataset.y_train[torch.from_numpy(part)].tolist())
        assert set(counts.values()) <= {10, 20}


def test_dirichlet_spreads_with_alpha() -> None:
    dataset = tiny(np.arange(4000) % 4)

    def spread(alpha: float) -> float:
        asked = spec(clients=4, partition="dirichlet", alpha=alpha)
        parts = partition_examples(dataset, asked, 1)
        counts = [np.bincount(dataset.y_train.numpy()[part], minlength=4) for part in parts]
        return float(np.std(counts))

    assert spread(1e6) < 5 < 150 < spread(0.5)


def classes_held(clients: int, each: int, classes: int) -> list[set[int]]:
    dataset = tiny(np.arange(60 * classes) % classes)
    asked = spec(clients=clients, partition="pathological", classes_per_client=each)
    parts = partition_examples(dataset, asked, 7)
    return [set(dataset.y_train.numpy()[part].tolist()) for part in parts]


@pytest.mark.parametrize(
    ("clients", "each"), [(5, 2), (2, 5), (1, 10), (10, 1), (10, 2), (30, 3), (6, 5), (3, 10)]
)
def test_pathological_uses_every_class(clients: int, each: int) -> None:
    held = classes_held(clients, each, 10)
    assert all(len(classes) == each for classes in held)
    assert set.union(*held) == set(range(10))


def test_pathological_with_few_clients_shares_no_class(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        assert classes_held(2, 3, 10) == [{0, 1, 2}, {3, 4, 5}]
    assert caplog.messages == [
        "data.clients = 2 with data.classes-per-client = 3 leaves 4 classes of tiny unused"
    ]


def test_pathological_tells_what_chance_left_unused(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        held = classes_held(4, 3, 10)
    unused = 10 - len(set.union(*held))
    assert unused > 0
    assert caplog.messages[0].endswith(f"leaves {unused} classes of tiny unused")


def test_labels_need_not_be_contiguous() -> None:
    dataset = tiny([3, 9] * 20)
    asked = spec(clients=2, partition="pathological", classes_per_client=1)
    parts = partition_examples(dataset, asked, 0)
    assert [set(dataset.y_train.numpy()[part].tolist()) for part in parts] == [{3}, {9}]


def test_the_pool_is_drawn_without_replacement() -> None:
    dataset = tiny(np.zeros(100, int))
    parts = partition_examples(dataset, spec(clients=4, examples_per_client=5), 0)
    assert [len(part) for part in parts] == [5] * 4
    assert len(set(held(parts))) == 20
    assert max(held(parts)) > 50  # from the whole set, not from its beginning
    drawn = seeds.rng(0, "pool").choice(100, 20, replace=False)
    assert held(parts) == sorted(drawn.tolist())


# --- the same as Flower's partitioners on a plain table ------------------------------------------


def flowers(scheme: str, pool: np.ndarray, dataset: Dataset, asked: Data, seed: int) -> list[Any]:
    import datasets
    from flwr_datasets import partitioner as flower

    seed = seeds.integer(seed, "partition") & 0xFFFFFFFF
    partitioner = {
        "iid": lambda: flower.IidPartitioner(asked.clients),
        "dirichlet": lambda: flower.DirichletPartitioner(
            asked.clients, "label", asked.alpha, asked.min_examples, seed=seed
        ),
        "pathological": lambda: flower.PathologicalPartitioner(
            asked.clients, "label", asked.classes_per_client, "first-deterministic", seed=seed
        ),
        "shards": lambda: flower.ShardPartitioner(
            asked.clients, "label", asked.shards_per_client, seed=seed
        ),
        "linear": lambda: flower.LinearPartitioner(asked.clients),
        "square": lambda: flower.SquarePartitioner(asked.clients),
        "exponential": lambda: flower.ExponentialPartitioner(asked.clients),
        "natural": lambda: flower.NaturalIdPartitioner("client"),
    }[scheme]()
    columns = {"index": pool, "label": dataset.y_train.numpy()[pool]}
    if dataset.owners is not None:
        columns["client"] = dataset.owners[pool]
    partitioner.dataset = datasets.Dataset.from_dict(columns)
    return [partitioner.load_partition(i)["index"][:] for i in range(asked.clients)]


@pytest.mark.filterwarnings("ignore:Specifying null_placement:FutureWarning")  # datasets' own sort
@complete
def test_equals_flowers_partitioner(scheme: str, capfd: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(3)
    dataset = tiny(rng.integers(0, 5, 503), [f"writer {i % 6}" for i in range(503)])
    asked = spec(clients=6, partition=scheme, alpha=1.0, shards_per_client=3)
    parts = partition_examples(dataset, asked, 11)
    assert capfd.readouterr() == ("", "")  # no progress bar
    pool = seeds.rng(11, "shuffle").permutation(503)
    assert [part.tolist() for part in parts] == flowers(scheme, pool, dataset, asked, 11)


# --- refusals ------------------------------------------------------------------------------------


def test_more_than_there_is() -> None:
    text = refused(tiny(np.zeros(60, int), name="mnist"), clients=7, examples_per_client=9)
    assert text == (
        "data.clients x data.examples-per-client = 7 x 9 = 63, but mnist has 60 training "
        "examples; lower one of them"
    )


@complete
def test_too_many_clients_are_refused_before_anything_is_drawn(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(seeds, "rng")
    dataset = tiny(np.zeros(60_000, int), np.zeros(60_000, int))
    text = refused(dataset, clients=70_000, partition=scheme, min_examples=10)
    assert text == (
        "data.clients x data.min-examples = 70000 x 10 = 700000, but there are 60000 training "
        "examples of tiny to divide; lower data.clients or data.min-examples"
    )


def test_a_client_with_too_few() -> None:
    text = refused(tiny(np.zeros(100, int)), clients=4, partition="linear", min_examples=11)
    assert text == (
        "data.partition 'linear' gives client 0 only 10 of 100 examples, but data.min-examples "
        "is 11 and data.clients 4; lower data.clients or data.min-examples"
    )


def test_a_pool_too_small_may_be_raised() -> None:
    text = refused(tiny(np.zeros(100, int)), clients=4, examples_per_client=5, min_examples=6)
    assert "4 x 6 = 24, but there are 20 training examples" in text
    assert text.endswith(
        "; lower data.clients or data.min-examples, or raise data.examples-per-client"
    )


@pytest.mark.parametrize(("scheme", "clients"), [("exponential", 30), ("square", 40)])
def test_a_client_with_none(scheme: str, clients: int) -> None:
    text = refused(tiny(np.zeros(1000, int)), clients=clients, partition=scheme)
    assert text == (
        f"data.partition {scheme!r} gives client 0, the smallest, none of the 1000 examples of "
        f"tiny with data.clients = {clients}; lower data.clients"
    )


def test_exponential_beyond_floats() -> None:
    text = refused(tiny(np.zeros(3000, int)), clients=1000, partition="exponential")
    assert "none of the 3000 examples" in text


@pytest.mark.parametrize("alpha", [0.01, 1e-300])
def test_dirichlet_gives_up_in_one_line(alpha: float) -> None:
    dataset = tiny(np.arange(200) % 2)
    text = refused(dataset, clients=10, partition="dirichlet", alpha=alpha, min_examples=15)
    assert text == (
        "data.partition 'dirichlet' cannot give each client enough of the 200 examples of tiny "
        f"with data.alpha = {alpha}, data.clients = 10, data.min-examples = 15; raise data.alpha, "
        "or lower data.clients or data.min-examples"
    )


def test_more_classes_than_there_are() -> None:
    text = refused(tiny([0, 1] * 9), partition="pathological", classes_per_client=3)
    assert text == "data.classes-per-client must be at most 2, the classes in tiny, got 3"


def test_a_class_too_small_for_its_clients() -> None:
    dataset = tiny([0] * 100 + [1])
    text = refused(dataset, clients=4, partition="pathological", classes_per_client=2)
    assert "data.partition 'pathological' cannot give each client enough of the 101" in text
    assert "data.clients = 4, data.classes-per-client = 2; lower data.clients or" in text


def test_more_shards_than_examples() -> None:
    text = refused(tiny([0, 1] * 9), clients=3, partition="shards", shards_per_client=7)
    assert "data.partition 'shards' cannot give each client enough of the 18 examples" in text
    assert "data.shards-per-client = 7; lower data.clients or data.shards-per-client" in text


@pytest.mark.parametrize("scheme", ["dirichlet", "pathological", "shards"])
@pytest.mark.parametrize(
    ("value", "more"),
    [(0.5, ""), (2, ", or set data.task = 'classification' if the targets are classes")],
)
def test_schemes_by_label_need_labels(scheme: str, value: float, more: str) -> None:
    text = refused(tiny(np.full(20, value, np.float32)), partition=scheme)
    assert text == (
        f"data.partition {scheme!r} needs class labels, but tiny has float32 targets of shape "
        f"[20]; use 'iid', 'linear', 'square', 'exponential' or 'natural'{more}"
    )


def test_natural_needs_owners() -> None:
    text = refused(tiny([0] * 9), partition="natural", partition_column="user")
    assert "tiny has no column 'user'; set data.partition-column" in text


@pytest.mark.parametrize("clients", [2, 4])
def test_natural_needs_as_many_clients_as_owners(clients: int) -> None:
    text = refused(tiny([0] * 9, list("aaabbbccc")), clients=clients, partition="natural")
    assert text == (
        "data.partition 'natural' finds 3 clients in tiny, but data.clients is "
        f"{clients}; set data.clients = 3"
    )


def test_natural_names_the_owner_with_too_few() -> None:
    text = refused(tiny([0] * 7, list("aaabbbc")), clients=3, partition="natural")
    assert "gives client 2 only 1 of 7 examples, but data.min-examples is 2" in text


def test_natural_with_a_pool_that_misses_an_owner() -> None:
    dataset = tiny([0] * 1001, ["a"] * 1000 + ["b"])
    text = refused(dataset, clients=2, partition="natural", examples_per_client=5)
    assert "data.examples-per-client = 5 leaves only 1 of the 2 clients of tiny" in text


# --- cost ----------------------------------------------------------------------------------------


@pytest.mark.seconds
def test_iid_imports_nothing_heavy() -> None:
    program = (
        "import sys, torch; from flsimulation.data import Dataset, partition_examples;"
        "from flsimulation.experiment.spec import Data;"
        "x = torch.zeros(40, 1); y = torch.zeros(40, dtype=torch.int64);"
        "partition_examples(Dataset('d', x, y, x, y), Data(), 0);"
        "print([m for m in ('flwr', 'flwr_datasets', 'datasets', 'PIL', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("scheme", ["iid", "dirichlet", "pathological", "shards", "natural"])
def test_a_thousand_clients_hold_every_example_once(scheme: str) -> None:
    dataset = tiny(np.arange(60_000) % 10, np.arange(60_000) % 1000)
    asked = spec(clients=1000, partition=scheme, alpha=5.0)
    assert held(partition_examples(dataset, asked, 0)) == list(range(60_000))
