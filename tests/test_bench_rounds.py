"""The benchmark of rounds: its workloads, and that the bare loop beside FLSimulation does the same work."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
MODULES = ("results", "workloads", "loop", "rounds")


@pytest.fixture(scope="module")
def modules() -> Iterator[Any]:
    """The scripts' modules, imported as the scripts import them and forgotten afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    for name in MODULES:
        sys.modules.pop(name)


# workloads.py and peers/shared/models.py


def test_text_of_a_markov_chain_and_its_next_characters(modules: Any) -> None:
    made = modules.workloads.markov_text(sequences=500)
    x, y = made["x_train"], made["y_train"]
    assert (x.shape, y.shape, made["x_test"].shape) == ((500, 80), (500, 80), (1000, 80))
    assert (x.min(), x.max()) == (0, 79)
    assert np.array_equal(x[:, 1:], y[:, :-1])
    followers = {a: set(y[x == a].tolist()) for a in range(80)}
    assert {len(found) for found in followers.values()} <= {
        2,
        3,
        4,
    }  # a follower may be drawn twice
    again = modules.workloads.markov_text(sequences=500)
    assert all(np.array_equal(array, again[name]) for name, array in made.items())


def test_pictures_of_a_class_are_alike(modules: Any) -> None:
    made = modules.workloads.noisy_pictures(images=200)
    x, y = made["x_train"].astype(int), made["y_train"]
    assert (x.shape, made["x_train"].dtype) == ((200, 3, 32, 32), np.uint8)
    spread = [np.ptp(x[y == label], axis=0).max() for label in range(10)]
    assert max(spread) == 63  # the noise alone
    assert np.ptp(x, axis=0).max() > 63


WITHOUT_LIGHTNING = """
import sys
sys.modules["pytorch_lightning"] = None
import torch
import models
image, tokens = torch.rand(2, 1, 28, 28), torch.randint(80, (2, 80))
inputs = {"CharacterLSTM": tokens, "ResNet8": torch.rand(2, 3, 32, 32)}
for name in sys.argv[1:]:
    print(*getattr(models, name)()(inputs.get(name, image)).shape)
print("flsimulation" in sys.modules)
"""


@pytest.mark.seconds
def test_peers_have_the_models_without_lightning(modules: Any) -> None:
    specs = [modules.workloads.experiment(f"W{number}", 1) for number in range(5, 11)]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            WITHOUT_LIGHTNING,
            *(s.model.class_.rpartition(":")[2] for s in specs),
        ],
        env=os.environ | {"PYTHONPATH": str(BENCHMARKS / "peers" / "shared")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["2 10"] * 4 + ["2 80 80", "2 10", "False"]


@pytest.mark.parametrize("name", ["W5", "W6", "W7", "W8", "W9", "W10"])
def test_small_clients_train_the_same_model_on_the_same_data(modules: Any, name: str) -> None:
    large, small = (modules.workloads.experiment(n, 1) for n in (name, f"{name}s"))
    assert (large.data.clients, large.cohort_size, large.train.batch_size) == (100, 10, 32)
    assert (small.data.clients, small.cohort_size, small.train.batch_size) == (1000, 100, 10)
    assert small.model == large.model
    assert small.data.dataset == large.data.dataset
    assert modules.workloads.WORKLOADS[f"{name}s"]["what"] == (
        modules.workloads.WORKLOADS[name]["what"].replace(
            "10 of 100 clients, 600 examples, batch 32",
            "100 of 1,000 clients, 60 examples, batch 10",
        )
    )


@pytest.mark.parametrize(("name", "parameters"), [("W11", 1_626_442), ("W12", 11_173_962)])
def test_models_for_gpus_are_those_of_their_papers(
    modules: Any, name: str, parameters: int
) -> None:
    model = getattr(
        modules.workloads, modules.workloads.experiment(name, 1).model.class_.rpartition(":")[2]
    )()
    assert sum(p.numel() for p in model.parameters()) == parameters
    x = torch.ones(2, 3, 32, 32)
    assert model(x).shape == (2, 10)
    drops = name == "W11"
    assert torch.equal(model(x), model(x)) != drops
    assert torch.equal(model.eval()(x), model(x))


# rounds.py and loop.py


@pytest.fixture
def few(modules: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """W6, which has dropout and BatchNorm, with 3 of 6 clients of 20 examples; judged after each round."""

    def experiment(name: str, rounds: int, engine: str = "auto", device: str = "cpu") -> Any:
        spec = modules.workloads.experiment("W6", rounds, engine, device)
        data = {"clients": 6, "examples_per_client": 20}
        parts = {
            "data": spec.data.model_copy(update=data),
            "strategy": spec.strategy.model_copy(update={"fraction_train": 0.5}),
            "train": spec.train.model_copy(update={"batch_size": 8}),
            "evaluate": spec.evaluate.model_copy(update={"central_every": 1}),
        }
        return spec.model_copy(update=parts)

    monkeypatch.setattr(modules.rounds, "experiment", experiment)
    return experiment


@pytest.mark.seconds
def test_all_sides_do_the_same_work(
    modules: Any, few: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[float] = []
    apart = modules.rounds.apart
    monkeypatch.setattr(
        modules.rounds, "apart", lambda *models: found.append(apart(*models)) or found[-1]
    )
    rows = list(modules.rounds.compare("W6", 2, "auto", "cpu", 2))
    assert [row["round"] for row in rows] == [1, 2]
    assert all(row[side] > 0 for row in rows for side in modules.rounds.SIDES)
    assert len(found) == 4  # of both rounds: the loop, and the loop in processes
    assert max(found) < 1e-3


@pytest.fixture
def loop(modules: Any, few: Any) -> Any:
    """The bare loop on one thread."""
    return modules.loop.Loop(modules.rounds.Workspace.load(few("W6", 1), clients=0))


@pytest.mark.seconds
@pytest.mark.parametrize("mistake", ["seed", "mode", "counter"])
def test_other_work_is_refused(
    modules: Any, loop: Any, mistake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = loop.space.initial_state()
    right = loop.round(state, (0, 2, 4), 1, judge=True)
    modules.rounds.check_same(loop.module, state, right, right)
    streams, trained = modules.loop.seeds.global_streams, loop.module.train
    if mistake == "seed":
        monkeypatch.setattr(modules.loop.seeds, "global_streams", lambda seed: streams(seed + 1))
    if mistake == "mode":
        monkeypatch.setattr(loop.module, "train", lambda: trained(False))
    wrong = loop.round(state, (0, 2, 4), 1, judge=False)
    if mistake == "counter":
        wrong["layers.1.num_batches_tracked"] += 1
    with pytest.raises(SystemExit, match="not the same work: the models are "):
        modules.rounds.check_same(loop.module, state, right, wrong)


@pytest.mark.seconds
def test_the_loop_judges_in_evaluation_mode(loop: Any) -> None:
    state = loop.space.initial_state()
    assert 0 < loop.judge(state) < 1
    assert not loop.module.training
    assert all(torch.equal(value, state[name]) for name, value in loop.module.state_dict().items())


def test_models_are_averaged_by_examples_and_counters_rounded(modules: Any) -> None:
    total = modules.loop.Sum()
    total.add({"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)}, 10)
    other = modules.loop.Sum()
    other.add({"w": torch.tensor([5.0, 2.0]), "n": torch.tensor(5)}, 30)
    total.join({name: value.numpy() for name, value in other.total.items()}, other.examples)
    mean = total.mean()
    assert mean["w"].tolist() == [4.0, 2.0]
    assert (mean["n"].dtype, mean["n"].item()) == (torch.int64, 4)  # 4.5, to the even one


def test_distance_is_a_share_of_what_the_round_changed(modules: Any) -> None:
    module = torch.nn.BatchNorm1d(2)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    theirs = before | {"weight": torch.tensor([4.0, 5.0]), "running_mean": torch.full((2,), 100.0)}
    ours = theirs | {"weight": torch.tensor([4.0, 5.5])}
    # a change of (3, 4), 0.5 apart; the statistics, which changed by more, are alike
    assert modules.rounds.apart(module, before, ours, theirs) == pytest.approx(0.1)
    ours = theirs | {"running_mean": torch.tensor([100.0, 101.0])}
    assert modules.rounds.apart(module, before, ours, theirs) == pytest.approx(1 / 141.42, rel=1e-3)
    ours = theirs | {"num_batches_tracked": torch.tensor(1)}
    assert modules.rounds.apart(module, before, ours, theirs) == float("inf")


def test_summary_of_a_workloads_rounds(modules: Any) -> None:
    rows = [
        {"engine": "stacked", "flsimulation": 1.0, "bare": 2.0, "processes": 4.0},
        {"engine": "stacked", "flsimulation": 3.0, "bare": 4.0, "processes": 3.0},
        {"engine": "stacked", "flsimulation": 2.0, "bare": 8.0, "processes": 1.0},
    ]
    found = modules.rounds.summary("W5", rows, 2)
    assert found["median-seconds"] == {"flsimulation": 2.0, "bare": 4.0, "processes": 3.0}
    assert found["least-seconds"] == {"flsimulation": 1.0, "bare": 2.0, "processes": 1.0}
    assert (found["median-ratio"], found["processes-ratio"]) == (0.5, 1.0)
    assert (found["engine"], found["rounds"], found["processes"]) == ("stacked", 3, 2)
    assert modules.rounds.line(found | {"peak-bytes": 5 * 2**20}) == (
        "W5: flsimulation (stacked) 2.000 s, bare loop 4.000 s a round (median of 3); ratio 0.50; "
        "in 2 processes 3.000 s, ratio 1.00; peak 5 MiB with all sides"
    )


def test_summary_without_the_third_side(modules: Any) -> None:
    found = modules.rounds.summary("W5", [{"engine": "e", "flsimulation": 1.0, "bare": 2.0}], 1)
    assert found["median-ratio"] == 0.5
    assert not {"processes", "processes-ratio"} & found.keys()
    assert modules.rounds.line(found | {"peak-bytes": 2**20}).endswith(
        "ratio 0.50; peak 1 MiB with all sides"
    )


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["W13"], "W13 is no workload; choose from W1, W2, "),
        (["--rounds", "2"], "--rounds must be more than 2, which are left out"),
    ],
)
def test_rounds_refuses_bad_input(
    modules: Any,
    arguments: list[str],
    problem: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["rounds.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        modules.rounds.main()
    assert problem in capsys.readouterr().err
