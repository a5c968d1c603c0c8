"""Populations of any size: clients that draw their examples, cohorts that nobody lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flsimulation import load_experiment, run
from flsimulation.cli.partition import partition_command
from flsimulation.data.federated import FederatedData
from flsimulation.data.partitions import DrawnPartitions
from flsimulation.errors import DataError
from flsimulation.experiment import Experiment
from flsimulation.runtimes.inprocess import InProcessGrid
from flsimulation.server.grid import PartitionedGrid
from flsimulation.server.sampling import LISTED_CLIENTS, OfferedNodes, offered

MILLION = 1_000_000


def million(*sets: str, clients: int = MILLION) -> Experiment:
    return load_experiment(
        None,
        [
            f"data.clients={clients}",
            "data.partition=drawn",
            "data.examples-per-client=12",
            f"strategy.fraction-train={20 / clients}",
            f"strategy.fraction-evaluate={20 / clients}",
            "strategy.rounds=2",
            "train.batch-size=4",
            "evaluate.clients=3",
            *sets,
        ],
    )


def grid_of(clients: int) -> InProcessGrid:
    return InProcessGrid(lambda _: iter(()), clients)


def test_drawn_clients_draw_for_themselves_and_the_same_each_time() -> None:
    drawn = DrawnPartitions(MILLION, 12, 60_000, seed=3)
    assert len(drawn) == MILLION
    first, last = drawn[0], drawn[MILLION - 1]
    for part in (first, last):
        assert (len(part), len(set(part.tolist()))) == (12, 12)
        assert part.dtype == np.int64
        assert 0 <= part.min() <= part.max() < 60_000
    assert first.tolist() != last.tolist()
    assert first.tolist() == drawn[0].tolist() == DrawnPartitions(5, 12, 60_000, seed=3)[0].tolist()
    assert first.tolist() != DrawnPartitions(5, 12, 60_000, seed=4)[0].tolist()
    with pytest.raises(IndexError, match="client 5 of 5"):
        DrawnPartitions(5, 12, 60_000, seed=3)[5]


def test_drawn_clients_hold_out_a_part_and_are_counted_without_being_drawn() -> None:
    data = FederatedData.load(million("data.validation-fraction=0.25"))
    assert data.train_examples == 12 * MILLION
    assert data.train_size(7) == 9
    held, rest = data.validation_indices(7), data.train_indices(7)
    assert (len(held), len(rest)) == (3, 9)
    assert sorted([*held, *rest]) == sorted(data.partitions[7])
    assert [sum(counts) for counts in data.histogram(4).values()] == [12] * 4


@pytest.mark.parametrize("size", [0, 9, 60_001])
def test_a_number_that_clients_cannot_draw_is_refused(size: int) -> None:
    text = rf"'drawn' needs data.examples-per-client between .* \(10\) and the 60000 .* got {size};"
    with pytest.raises(DataError, match=text):
        FederatedData.load(million(f"data.examples-per-client={size}"))


def test_a_million_clients_are_no_table() -> None:
    grid = grid_of(MILLION)
    assert len(grid.partitions) == MILLION
    assert list(grid.partitions)[:2] == list(grid.get_node_ids())[:2]  # type: ignore[index]
    for partition in (0, 17, MILLION - 1):
        node = grid.node_of(partition)
        assert node is not None
        assert grid.partitions[node] == partition
    assert grid.node_of(MILLION) is None
    assert grid.node_of(-1) is None
    assert tuple(grid.partitions.values())[-1] == MILLION - 1
    with pytest.raises(KeyError):
        grid.partitions[1]


def test_small_populations_are_listed_and_large_ones_offered() -> None:
    small, large = grid_of(LISTED_CLIENTS), grid_of(LISTED_CLIENTS + 1)
    assert offered(small, million(clients=LISTED_CLIENTS), "train", 1) is small
    found = offered(large, million(clients=LISTED_CLIENTS + 1), "train", 1)
    assert isinstance(found, OfferedNodes)
    assert found.averages is False  # everything else is the grid's
    assert len(set(found.get_node_ids())) == 20


def test_each_round_and_phase_draws_its_own_cohort_and_a_seed_draws_it_again() -> None:
    grid, spec = grid_of(MILLION), million()

    def drawn(phase: Any, round: int, spec: Experiment = spec) -> list[int]:
        return list(offered(grid, spec, phase, round).get_node_ids())

    assert drawn("train", 1) == drawn("train", 1)
    others = [drawn("train", 2), drawn("evaluate", 1), drawn("train", 1, million("seed=1"))]
    assert all(other != drawn("train", 1) for other in others)
    assert max(drawn("train", 1)) > MILLION / 2


def test_nothing_is_drawn_for_a_phase_that_does_not_ask() -> None:
    calls: list[int] = []

    class Counting(InProcessGrid):
        def node_of(self, partition: int) -> int | None:
            calls.append(partition)
            return super().node_of(partition)

    grid: PartitionedGrid = Counting(lambda _: iter(()), MILLION)
    found = offered(grid, million(), "train", 1)
    assert calls == []
    found.get_node_ids()
    found.get_node_ids()
    assert len(calls) == 20


@pytest.mark.seconds
@pytest.mark.parametrize("strategy", ["fedavg", "fedadam"])
def test_a_federation_of_a_million(tmp_path: Path, strategy: str, recorder: Any) -> None:
    result = run(million(f"strategy.name={strategy}"), tmp_path / "run", [recorder])
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()
    ]
    assert (result.state, result.rounds) == ("completed", 2)
    cohorts: list[list[int]] = [line["cohort"] for line in lines]
    assert [len(set(cohort)) for cohort in cohorts] == [20, 20]
    assert cohorts[0] != cohorts[1]
    assert max(map(max, cohorts)) > MILLION / 2
    assert all(line["failures"] == {} and line["federated"] for line in lines)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["data"]["train-examples"] == 12 * MILLION
    assert manifest["data"]["histogram"] is None
    clients = (tmp_path / "run" / "clients.jsonl").read_text().splitlines()
    final = [json.loads(line) for line in clients if '"final"' in line]
    assert [line["partition"] for line in final] == [0, 1, 2]


@pytest.mark.seconds
def test_the_partition_verb_shows_the_first_of_a_million(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    png = tmp_path / "x.png"
    sets = ("data.clients=1000000", "data.partition=drawn", "data.examples-per-client=60")
    partition_command(None, list(sets), png)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3] == "... and 999900 more clients"
    assert lines[-2] == "1000000 clients, 60000000 of 60000 training examples, 60 to 60 per client"
    assert png.stat().st_size > 10_000
